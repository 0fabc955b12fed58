package shim

import (
	"context"
	"time"

	api "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/base/spec"
)

const sandboxService = "containerd.runtime.sandbox.v1.Sandbox"

// Sandbox is the sandbox that a shim holds.
type Sandbox struct {
	Conn      *Conn
	Namespace string
	ID        string
}

// SandboxRequest asks for a sandbox that is made and not started.
type SandboxRequest struct {
	Bundle      string
	Rootfs      []spec.Mount
	Options     spec.Any
	NetNS       string // path of a network namespace, or ""
	Annotations map[string]string
}

// SandboxStatus is all that a shim tells of its sandbox.
type SandboxStatus struct {
	ID        string
	Pid       uint32
	State     string
	Info      map[string]string
	CreatedAt time.Time
	ExitedAt  time.Time // zero while it runs
	Extra     spec.Any
}

// Metric is one reading.
type Metric struct {
	ID   string
	At   time.Time
	Data spec.Any
}

func (s Sandbox) do(ctx context.Context, method string, req, resp proto.Message) error {
	ctx = ttrpc.WithMetadata(ctx, ttrpc.MD{"containerd-namespace-ttrpc": []string{s.Namespace}})
	return s.Conn.call.call(ctx, sandboxService, method, req, resp)
}

// Create makes the sandbox.
func (s Sandbox) Create(ctx context.Context, r SandboxRequest) error {
	req := &api.CreateSandboxRequest{
		SandboxID: s.ID, BundlePath: r.Bundle, Options: toAny(r.Options), NetnsPath: r.NetNS, Annotations: r.Annotations,
	}
	for _, m := range r.Rootfs {
		req.Rootfs = append(req.Rootfs, &types.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	return s.do(ctx, "CreateSandbox", req, &api.CreateSandboxResponse{})
}

// Start starts it and returns its pid, 0 if it has no process, and since when it
// is there.
func (s Sandbox) Start(ctx context.Context) (pid uint32, created time.Time, err error) {
	var r api.StartSandboxResponse
	err = s.do(ctx, "StartSandbox", &api.StartSandboxRequest{SandboxID: s.ID}, &r)
	if t := r.GetCreatedAt(); t != nil {
		created = t.AsTime()
	}
	return r.GetPid(), created, err
}

// Stop ends what runs in it, within the time.
func (s Sandbox) Stop(ctx context.Context, limit time.Duration) error {
	return s.do(ctx, "StopSandbox", &api.StopSandboxRequest{SandboxID: s.ID, TimeoutSecs: uint32(limit.Seconds())}, &api.StopSandboxResponse{})
}

// Wait returns when it has ended.
func (s Sandbox) Wait(ctx context.Context) (Exit, error) {
	var r api.WaitSandboxResponse
	err := s.do(ctx, "WaitSandbox", &api.WaitSandboxRequest{SandboxID: s.ID}, &r)
	e := Exit{Status: r.GetExitStatus()}
	if t := r.GetExitedAt(); t != nil {
		e.At = t.AsTime()
	}
	return e, err
}

// Status asks for its present state.
func (s Sandbox) Status(ctx context.Context, verbose bool) (SandboxStatus, error) {
	var r api.SandboxStatusResponse
	err := s.do(ctx, "SandboxStatus", &api.SandboxStatusRequest{SandboxID: s.ID, Verbose: verbose}, &r)
	out := SandboxStatus{ID: r.GetSandboxID(), Pid: r.GetPid(), State: r.GetState(), Info: r.GetInfo(), Extra: fromAny(r.GetExtra())}
	if t := r.GetCreatedAt(); t != nil {
		out.CreatedAt = t.AsTime()
	}
	if t := r.GetExitedAt(); t != nil {
		out.ExitedAt = t.AsTime()
	}
	return out, err
}

// Shutdown ends the sandbox and its shim.
func (s Sandbox) Shutdown(ctx context.Context) error {
	return s.do(ctx, "ShutdownSandbox", &api.ShutdownSandboxRequest{SandboxID: s.ID}, &api.ShutdownSandboxResponse{})
}

// Metrics reads its statistics.
func (s Sandbox) Metrics(ctx context.Context) (Metric, error) {
	var r api.SandboxMetricsResponse
	err := s.do(ctx, "SandboxMetrics", &api.SandboxMetricsRequest{SandboxID: s.ID}, &r)
	m := Metric{ID: r.GetMetrics().GetID(), Data: fromAny(r.GetMetrics().GetData())}
	if t := r.GetMetrics().GetTimestamp(); t != nil {
		m.At = t.AsTime()
	}
	return m, err
}

// SandboxChange is new metadata of a sandbox, of which fields have changed; none
// named means all may have.
type SandboxChange struct {
	Runtime    string
	Options    spec.Any
	Spec       spec.Any
	Labels     map[string]string
	Extensions map[string]spec.Any
	Fields     []string
}

// Update tells the shim of changed metadata; one that takes no changes answers
// Unimplemented.
func (s Sandbox) Update(ctx context.Context, c SandboxChange) error {
	b := &types.Sandbox{SandboxID: s.ID, Runtime: &types.Sandbox_Runtime{Name: c.Runtime, Options: toAny(c.Options)}, Spec: toAny(c.Spec), Labels: c.Labels}
	for k, v := range c.Extensions {
		if b.Extensions == nil {
			b.Extensions = map[string]*anypb.Any{}
		}
		b.Extensions[k] = toAny(v)
	}
	return s.do(ctx, "UpdateSandbox", &api.UpdateSandboxRequest{SandboxID: s.ID, Sandbox: b, Fields: c.Fields}, &api.UpdateSandboxResponse{})
}
