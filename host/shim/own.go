package shim

import (
	"context"

	task "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/berthd/berth/base/errs"
)

// ownService is what berth-shim has beside the task service. Other shims answer
// with Unimplemented.
const ownService = "berth.shim.v1.Shim"

func (t Task) own(ctx context.Context, method, execID string, resp proto.Message) error {
	return t.ownCall(ctx, method, &task.StateRequest{ID: t.ID, ExecID: execID}, resp)
}

// Run is Create and Start in one: the runtime is started once and not twice.
func (t Task) Run(ctx context.Context, r CreateRequest) (uint32, error) {
	var resp task.StartResponse
	err := t.ownCall(ctx, "Run", t.createRequest(r), &resp)
	return resp.GetPid(), err
}

func (t Task) ownCall(ctx context.Context, method string, req, resp proto.Message) error {
	ctx = ttrpc.WithMetadata(ctx, ttrpc.MD{"containerd-namespace-ttrpc": []string{t.Namespace}})
	err := t.Conn.call.call(ctx, ownService, method, req, resp)
	if errs.Is(err, errs.Unimplemented) {
		return errs.New(errs.Unimplemented, "the shim of container %q cannot do this: only berth-shim can", t.ID)
	}
	return err
}

// ReopenLog has the shim go on in a new log file, after somebody renamed the old one.
func (t Task) ReopenLog(ctx context.Context) error {
	return t.own(ctx, "ReopenLog", "", &emptypb.Empty{})
}

// AttachSocket returns the path of the socket over which a process can be attached
// to: see base/attach.
func (t Task) AttachSocket(ctx context.Context, execID string) (string, error) {
	var path wrapperspb.StringValue
	err := t.own(ctx, "Attach", execID, &path)
	return path.GetValue(), err
}
