package containerd

import (
	"context"

	api "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/engine/task"
	"github.com/berthd/berth/store"
)

// Tasks serves containerd.services.tasks.v1.
type Tasks struct {
	api.UnimplementedTasksServer
	Store *store.Store
	Tasks *task.Tasks
}

func toProcess(s task.State) *tasktypes.Process {
	p := &tasktypes.Process{
		ContainerID: s.ID, ID: s.ExecID, Pid: s.Pid, Status: tasktypes.Status(s.Status), Stdin: s.Stdin, Stdout: s.Stdout, Stderr: s.Stderr,
		Terminal: s.Terminal, ExitStatus: s.ExitStatus, ExitedAt: stamp(s.ExitedAt),
	}
	if p.ID == "" {
		p.ID = s.ID
	}
	return p
}

func (s Tasks) Create(ctx context.Context, r *api.CreateTaskRequest) (*api.CreateTaskResponse, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	pid, err := s.Tasks.Create(ctx, v, task.CreateRequest{
		ID: r.GetContainerID(), Rootfs: fromMounts(r.GetRootfs()), Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr(), Terminal: r.GetTerminal(),
		Options: fromAny(r.GetOptions()), RuntimePath: r.GetRuntimePath(),
		Restore:     fromDescriptor(r.GetCheckpoint()),
		TaskAddress: r.GetTaskApiAddress(), TaskVersion: int(r.GetTaskApiVersion()),
	})
	return &api.CreateTaskResponse{ContainerID: r.GetContainerID(), Pid: pid}, err
}

func (s Tasks) Start(ctx context.Context, r *api.StartRequest) (*api.StartResponse, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	pid, err := s.Tasks.Start(ctx, v, r.GetContainerID(), r.GetExecID())
	return &api.StartResponse{Pid: pid}, err
}

func toDelete(e task.Exit) *api.DeleteResponse {
	return &api.DeleteResponse{Pid: e.Pid, ExitStatus: e.Status, ExitedAt: stamp(e.At)}
}

func (s Tasks) Delete(ctx context.Context, r *api.DeleteTaskRequest) (*api.DeleteResponse, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	e, err := s.Tasks.Delete(ctx, v, r.GetContainerID())
	resp := toDelete(e)
	resp.ID = r.GetContainerID()
	return resp, err
}

func (s Tasks) DeleteProcess(ctx context.Context, r *api.DeleteProcessRequest) (*api.DeleteResponse, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	e, err := s.Tasks.DeleteProcess(ctx, v, r.GetContainerID(), r.GetExecID())
	resp := toDelete(e)
	resp.ID = r.GetExecID()
	return resp, err
}

func (s Tasks) Get(ctx context.Context, r *api.GetRequest) (*api.GetResponse, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	st, err := s.Tasks.Get(ctx, v, r.GetContainerID(), r.GetExecID())
	return &api.GetResponse{Process: toProcess(st)}, err
}

func (s Tasks) List(ctx context.Context, _ *api.ListTasksRequest) (*api.ListTasksResponse, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	l, err := s.Tasks.List(ctx, v)
	return &api.ListTasksResponse{Tasks: convert(l, toProcess)}, err
}

func (s Tasks) Kill(ctx context.Context, r *api.KillRequest) (*emptypb.Empty, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, s.Tasks.Kill(ctx, v, r.GetContainerID(), r.GetExecID(), r.GetSignal(), r.GetAll())
}

func (s Tasks) Exec(ctx context.Context, r *api.ExecProcessRequest) (*emptypb.Empty, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, s.Tasks.Exec(ctx, v, r.GetContainerID(), task.ExecRequest{
		ExecID: r.GetExecID(), Terminal: r.GetTerminal(), Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr(), Spec: fromAny(r.GetSpec()),
	})
}

func (s Tasks) ResizePty(ctx context.Context, r *api.ResizePtyRequest) (*emptypb.Empty, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, s.Tasks.ResizePty(ctx, v, r.GetContainerID(), r.GetExecID(), r.GetWidth(), r.GetHeight())
}

func (s Tasks) CloseIO(ctx context.Context, r *api.CloseIORequest) (*emptypb.Empty, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, s.Tasks.CloseIO(ctx, v, r.GetContainerID(), r.GetExecID(), r.GetStdin())
}

func (s Tasks) Pause(ctx context.Context, r *api.PauseTaskRequest) (*emptypb.Empty, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, s.Tasks.Pause(ctx, v, r.GetContainerID())
}

func (s Tasks) Resume(ctx context.Context, r *api.ResumeTaskRequest) (*emptypb.Empty, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, s.Tasks.Resume(ctx, v, r.GetContainerID())
}

func (s Tasks) ListPids(ctx context.Context, r *api.ListPidsRequest) (*api.ListPidsResponse, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	l, err := s.Tasks.Pids(ctx, v, r.GetContainerID())
	return &api.ListPidsResponse{Processes: convert(l, func(p task.Process) *tasktypes.ProcessInfo {
		return &tasktypes.ProcessInfo{Pid: p.Pid, Info: toAny(p.Info)}
	})}, err
}

func (s Tasks) Checkpoint(ctx context.Context, r *api.CheckpointTaskRequest) (*api.CheckpointTaskResponse, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	l, err := s.Tasks.Checkpoint(ctx, v, r.GetContainerID(), fromAny(r.GetOptions()))
	return &api.CheckpointTaskResponse{Descriptors: convert(l, toDescriptor)}, err
}

func (s Tasks) Update(ctx context.Context, r *api.UpdateTaskRequest) (*emptypb.Empty, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, s.Tasks.Update(ctx, v, r.GetContainerID(), fromAny(r.GetResources()), r.GetAnnotations())
}

func (s Tasks) Metrics(ctx context.Context, r *api.MetricsRequest) (*api.MetricsResponse, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	l, err := s.Tasks.Metrics(ctx, v, r.GetFilters()...)
	return &api.MetricsResponse{Metrics: convert(l, func(m task.Metric) *types.Metric {
		return &types.Metric{ID: m.ID, Timestamp: stamp(m.At), Data: toAny(m.Data)}
	})}, err
}

func (s Tasks) Wait(ctx context.Context, r *api.WaitRequest) (*api.WaitResponse, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	e, err := s.Tasks.Wait(ctx, v, r.GetContainerID(), r.GetExecID())
	return &api.WaitResponse{ExitStatus: e.Status, ExitedAt: stamp(e.At)}, err
}
