package shim

import (
	"context"
	"time"

	task "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/spec"
)

// The task services. Their messages are the same but for the package name, so one
// set of Go types serves both.
const (
	taskV2 = "containerd.task.v2.Task"
	taskV3 = "containerd.task.v3.Task"
)

// Task is one container of a shim.
type Task struct {
	Conn      *Conn
	Namespace string
	ID        string
}

// Status is a process's state, with the API's numbers.
type Status int32

// The states of a process.
const (
	Unknown Status = iota
	Created
	Running
	Stopped
	Paused
	Pausing
)

// State is all that a shim tells of one process.
type State struct {
	ID, ExecID, Bundle    string
	Pid                   uint32
	Status                Status
	Stdin, Stdout, Stderr string
	Terminal              bool
	ExitStatus            uint32
	ExitedAt              time.Time
}

// Exit is how a process ended.
type Exit struct {
	Pid    uint32
	Status uint32
	At     time.Time
}

// CreateRequest asks for a container that is made and not started.
type CreateRequest struct {
	Bundle                string
	Rootfs                []spec.Mount
	Terminal              bool
	Stdin, Stdout, Stderr string
	Checkpoint            string // directory with an image to restore, or ""
	Options               spec.Any
}

// ExecRequest asks for one more process; Start runs it.
type ExecRequest struct {
	ExecID                string
	Terminal              bool
	Stdin, Stdout, Stderr string
	Spec                  spec.Any // OCI process
}

// Process is one process id of a container, with what the shim tells of it.
type Process struct {
	Pid  uint32
	Info spec.Any
}

func (t Task) do(ctx context.Context, method string, req, resp proto.Message) error {
	ctx = ttrpc.WithMetadata(ctx, ttrpc.MD{"containerd-namespace-ttrpc": []string{t.Namespace}})
	service := taskV3
	if t.Conn.isV2() {
		service = taskV2
	}
	err := t.Conn.call.call(ctx, service, method, req, resp)
	if service == taskV3 && errs.Is(err, errs.Unimplemented) && t.Conn.fallBack() {
		return t.do(ctx, method, req, resp)
	}
	return err
}

func (c *Conn) isV2() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.v2
}

// fallBack is for a shim that says version 3 and knows only Task v2.
func (c *Conn) fallBack() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	first := !c.v2
	c.v2 = true
	return first
}

func toAny(a spec.Any) *anypb.Any {
	if a.Empty() {
		return nil
	}
	return &anypb.Any{TypeUrl: a.TypeURL, Value: a.Value}
}

func fromAny(a *anypb.Any) spec.Any { return spec.Any{TypeURL: a.GetTypeUrl(), Value: a.GetValue()} }

func (t Task) createRequest(r CreateRequest) *task.CreateTaskRequest {
	req := &task.CreateTaskRequest{
		ID: t.ID, Bundle: r.Bundle, Terminal: r.Terminal, Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr,
		Checkpoint: r.Checkpoint, Options: toAny(r.Options),
	}
	for _, m := range r.Rootfs {
		req.Rootfs = append(req.Rootfs, &types.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	return req
}

// Create makes the container and returns the pid of its init.
func (t Task) Create(ctx context.Context, r CreateRequest) (uint32, error) {
	var resp task.CreateTaskResponse
	err := t.do(ctx, "Create", t.createRequest(r), &resp)
	return resp.GetPid(), err
}

// Start runs the init ("") or an exec and returns its pid.
func (t Task) Start(ctx context.Context, execID string) (uint32, error) {
	var resp task.StartResponse
	err := t.do(ctx, "Start", &task.StartRequest{ID: t.ID, ExecID: execID}, &resp)
	return resp.GetPid(), err
}

// State asks for the present state of a process.
func (t Task) State(ctx context.Context, execID string) (State, error) {
	var r task.StateResponse
	err := t.do(ctx, "State", &task.StateRequest{ID: t.ID, ExecID: execID}, &r)
	return State{
		ID: r.GetID(), ExecID: r.GetExecID(), Bundle: r.GetBundle(), Pid: r.GetPid(), Status: Status(r.GetStatus()), Stdin: r.GetStdin(), Stdout: r.GetStdout(),
		Stderr: r.GetStderr(), Terminal: r.GetTerminal(), ExitStatus: r.GetExitStatus(), ExitedAt: r.GetExitedAt().AsTime(),
	}, err
}

// Delete removes a stopped process.
func (t Task) Delete(ctx context.Context, execID string) (Exit, error) {
	var r task.DeleteResponse
	err := t.do(ctx, "Delete", &task.DeleteRequest{ID: t.ID, ExecID: execID}, &r)
	return Exit{r.GetPid(), r.GetExitStatus(), r.GetExitedAt().AsTime()}, err
}

// Wait returns when the process has ended.
func (t Task) Wait(ctx context.Context, execID string) (Exit, error) {
	var r task.WaitResponse
	err := t.do(ctx, "Wait", &task.WaitRequest{ID: t.ID, ExecID: execID}, &r)
	return Exit{Status: r.GetExitStatus(), At: r.GetExitedAt().AsTime()}, err
}

// Kill signals a process, or all of the container.
func (t Task) Kill(ctx context.Context, execID string, signal uint32, all bool) error {
	return t.do(ctx, "Kill", &task.KillRequest{ID: t.ID, ExecID: execID, Signal: signal, All: all}, &emptypb.Empty{})
}

// Exec registers a process.
func (t Task) Exec(ctx context.Context, r ExecRequest) error {
	return t.do(ctx, "Exec", &task.ExecProcessRequest{
		ID: t.ID, ExecID: r.ExecID, Terminal: r.Terminal, Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Spec: toAny(r.Spec),
	}, &emptypb.Empty{})
}

// ResizePty sets the size of a process's terminal, in characters.
func (t Task) ResizePty(ctx context.Context, execID string, width, height uint32) error {
	return t.do(ctx, "ResizePty", &task.ResizePtyRequest{ID: t.ID, ExecID: execID, Width: width, Height: height}, &emptypb.Empty{})
}

// CloseIO closes stdin.
func (t Task) CloseIO(ctx context.Context, execID string, stdin bool) error {
	return t.do(ctx, "CloseIO", &task.CloseIORequest{ID: t.ID, ExecID: execID, Stdin: stdin}, &emptypb.Empty{})
}

// Pause freezes the container.
func (t Task) Pause(ctx context.Context) error {
	return t.do(ctx, "Pause", &task.PauseRequest{ID: t.ID}, &emptypb.Empty{})
}

// Resume thaws it.
func (t Task) Resume(ctx context.Context) error {
	return t.do(ctx, "Resume", &task.ResumeRequest{ID: t.ID}, &emptypb.Empty{})
}

// Pids lists the processes of the container.
func (t Task) Pids(ctx context.Context) ([]Process, error) {
	var r task.PidsResponse
	err := t.do(ctx, "Pids", &task.PidsRequest{ID: t.ID}, &r)
	var out []Process
	for _, p := range r.GetProcesses() {
		out = append(out, Process{p.GetPid(), fromAny(p.GetInfo())})
	}
	return out, err
}

// Checkpoint writes the container's state into a directory.
func (t Task) Checkpoint(ctx context.Context, path string, options spec.Any) error {
	return t.do(ctx, "Checkpoint", &task.CheckpointTaskRequest{ID: t.ID, Path: path, Options: toAny(options)}, &emptypb.Empty{})
}

// Update changes the limits of the container.
func (t Task) Update(ctx context.Context, resources spec.Any, annotations map[string]string) error {
	return t.do(ctx, "Update", &task.UpdateTaskRequest{ID: t.ID, Resources: toAny(resources), Annotations: annotations}, &emptypb.Empty{})
}

// Stats reads the container's cgroup.
func (t Task) Stats(ctx context.Context) (spec.Any, error) {
	var r task.StatsResponse
	err := t.do(ctx, "Stats", &task.StatsRequest{ID: t.ID}, &r)
	return fromAny(r.GetStats()), err
}

// Connect asks for the pids of the shim and of the container's init.
func (t Task) Connect(ctx context.Context) (shim, init uint32, err error) {
	var r task.ConnectResponse
	err = t.do(ctx, "Connect", &task.ConnectRequest{ID: t.ID}, &r)
	return r.GetShimPid(), r.GetTaskPid(), err
}

// Shutdown ends the shim if it has no container left.
func (t Task) Shutdown(ctx context.Context, now bool) error {
	return t.do(ctx, "Shutdown", &task.ShutdownRequest{ID: t.ID, Now: now}, &emptypb.Empty{})
}
