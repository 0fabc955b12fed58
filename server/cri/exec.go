package cri

import (
	"context"

	api "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ExecSync runs a command in a container and answers when it has ended.
func (s Runtime) ExecSync(ctx context.Context, r *api.ExecSyncRequest) (*api.ExecSyncResponse, error) {
	stdout, stderr, code, err := s.Pods.ExecSync(ctx, namespace(ctx), r.GetContainerId(), r.GetCmd(), seconds(r.GetTimeout()))
	if err != nil {
		return nil, err
	}
	return &api.ExecSyncResponse{Stdout: stdout, Stderr: stderr, ExitCode: code}, nil
}

// Exec answers where a command's streams can be fetched.
func (s Runtime) Exec(_ context.Context, r *api.ExecRequest) (*api.ExecResponse, error) {
	return s.Streams.GetExec(r)
}

// Attach answers where a container's streams can be fetched.
func (s Runtime) Attach(_ context.Context, r *api.AttachRequest) (*api.AttachResponse, error) {
	return s.Streams.GetAttach(r)
}

// PortForward answers where the ports of a pod can be reached.
func (s Runtime) PortForward(_ context.Context, r *api.PortForwardRequest) (*api.PortForwardResponse, error) {
	return s.Streams.GetPortForward(r)
}

// CheckpointContainer writes the state of a running container into a file.
func (s Runtime) CheckpointContainer(ctx context.Context, r *api.CheckpointContainerRequest) (*api.CheckpointContainerResponse, error) {
	if err := s.Pods.Checkpoint(ctx, Namespace, r.GetContainerId(), r.GetLocation(), seconds(r.GetTimeout())); err != nil {
		return nil, err
	}
	return &api.CheckpointContainerResponse{}, nil
}
