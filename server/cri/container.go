package cri

import (
	"context"
	"math"
	"strings"
	"time"

	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/engine/pod"
	"github.com/berthd/berth/store"
)

// CreateContainer makes a container; asked again for the same name it gives the
// same container.
func (s Runtime) CreateContainer(ctx context.Context, r *api.CreateContainerRequest) (*api.CreateContainerResponse, error) {
	id, err := s.Pods.Create(ctx, namespace(ctx), r.GetPodSandboxId(), r.GetConfig())
	if err != nil {
		return nil, err
	}
	return &api.CreateContainerResponse{ContainerId: id}, nil
}

// StartContainer runs a created container.
func (s Runtime) StartContainer(ctx context.Context, r *api.StartContainerRequest) (*api.StartContainerResponse, error) {
	if err := s.Pods.Start(ctx, namespace(ctx), r.GetContainerId()); err != nil {
		return nil, err
	}
	return &api.StartContainerResponse{}, nil
}

// StopContainer ends a container, after its grace time by force.
func (s Runtime) StopContainer(ctx context.Context, r *api.StopContainerRequest) (*api.StopContainerResponse, error) {
	if err := s.Pods.StopContainer(ctx, namespace(ctx), r.GetContainerId(), seconds(r.GetTimeout())); err != nil {
		return nil, err
	}
	return &api.StopContainerResponse{}, nil
}

// seconds reads a time-out; none and more than can be told apart from forever are
// bounded.
func seconds(n int64) time.Duration {
	return time.Duration(max(0, min(n, math.MaxInt64/int64(time.Second)))) * time.Second
}

// RemoveContainer takes a container away, by force if it runs.
func (s Runtime) RemoveContainer(ctx context.Context, r *api.RemoveContainerRequest) (*api.RemoveContainerResponse, error) {
	if err := s.Pods.RemoveContainer(ctx, namespace(ctx), r.GetContainerId()); err != nil {
		return nil, err
	}
	return &api.RemoveContainerResponse{}, nil
}

// ListContainers lists the containers that match.
func (s Runtime) ListContainers(ctx context.Context, r *api.ListContainersRequest) (*api.ListContainersResponse, error) {
	return &api.ListContainersResponse{Containers: listContainers(s.Pods.Containers(namespace(ctx), ""), r.GetFilter())}, nil
}

// StreamContainers is ListContainers for any number of containers.
func (s Runtime) StreamContainers(r *api.StreamContainersRequest, out api.RuntimeService_StreamContainersServer) error {
	return inBatches(listContainers(s.Pods.Containers(namespace(out.Context()), ""), r.GetFilter()), func(some []*api.Container) error {
		return out.Send(&api.StreamContainersResponse{Containers: some})
	})
}

// ContainerStatus tells all about one container.
func (s Runtime) ContainerStatus(ctx context.Context, r *api.ContainerStatusRequest) (*api.ContainerStatusResponse, error) {
	v, err := s.Pods.ContainerView(ctx, namespace(ctx), r.GetContainerId(), r.GetVerbose())
	if err != nil {
		return nil, err
	}
	return &api.ContainerStatusResponse{Status: containerStatus(v.Container), Info: v.Info}, nil
}

// UpdateContainerResources changes the limits of a container.
func (s Runtime) UpdateContainerResources(ctx context.Context, r *api.UpdateContainerResourcesRequest) (*api.UpdateContainerResourcesResponse, error) {
	if err := s.Pods.Update(ctx, namespace(ctx), r.GetContainerId(), r.GetLinux(), r.GetAnnotations()); err != nil {
		return nil, err
	}
	return &api.UpdateContainerResourcesResponse{}, nil
}

// ReopenContainerLog has a log go on in a new file, after it was rotated.
func (s Runtime) ReopenContainerLog(ctx context.Context, r *api.ReopenContainerLogRequest) (*api.ReopenContainerLogResponse, error) {
	if err := s.Pods.ReopenLog(ctx, namespace(ctx), r.GetContainerId()); err != nil {
		return nil, err
	}
	return &api.ReopenContainerLogResponse{}, nil
}

func containerState(c *pod.Container) api.ContainerState {
	switch c.State {
	case store.ContainerCreated:
		return api.ContainerState_CONTAINER_CREATED
	case store.ContainerRunning:
		return api.ContainerState_CONTAINER_RUNNING
	case store.ContainerExited:
		return api.ContainerState_CONTAINER_EXITED
	case store.ContainerRemoving:
		if !c.FinishedAt.IsZero() {
			return api.ContainerState_CONTAINER_EXITED
		}
	}
	return api.ContainerState_CONTAINER_UNKNOWN
}

func imageSpec(c *pod.Container) *api.ImageSpec {
	ask := c.Config.GetImage()
	return &api.ImageSpec{
		Image: c.ImageName, Annotations: ask.GetAnnotations(), UserSpecifiedImage: ask.GetUserSpecifiedImage(), RuntimeHandler: ask.GetRuntimeHandler(),
	}
}

func containerStatus(c *pod.Container) *api.ContainerStatus {
	groups := make([]int64, 0, len(c.Groups))
	for _, g := range c.Groups {
		groups = append(groups, int64(g))
	}
	return &api.ContainerStatus{
		Id: c.ID, Metadata: c.Config.GetMetadata(), State: containerState(c), CreatedAt: c.CreatedAt.UnixNano(), StartedAt: nanos(c.StartedAt),
		FinishedAt: nanos(c.FinishedAt), ExitCode: c.ExitCode, Image: imageSpec(c), ImageRef: c.ImageRef, ImageId: c.ImageID, Reason: c.Reason,
		Message: c.Message, Labels: c.Config.GetLabels(), Annotations: c.Config.GetAnnotations(), Mounts: c.StatusMounts(), LogPath: c.LogPath,
		Resources:  &api.ContainerResources{Linux: c.Config.GetLinux().GetResources()},
		User:       &api.ContainerUser{Linux: &api.LinuxContainerUser{Uid: int64(c.UID), Gid: int64(c.GID), SupplementalGroups: groups}},
		StopSignal: c.CRISignal(),
	}
}

func containerStatuses(all []*pod.Container) []*api.ContainerStatus {
	out := make([]*api.ContainerStatus, 0, len(all))
	for _, c := range all {
		out = append(out, containerStatus(c))
	}
	return out
}

// nanos is a time as CRI has it: 0 where there is none.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func listContainers(all []*pod.Container, f *api.ContainerFilter) []*api.Container {
	var out []*api.Container
	for _, c := range all {
		if !strings.HasPrefix(c.ID, f.GetId()) || !strings.HasPrefix(c.Pod, f.GetPodSandboxId()) ||
			f.GetState() != nil && f.GetState().GetState() != containerState(c) || !selects(f.GetLabelSelector(), c.Config.GetLabels()) {
			continue
		}
		out = append(out, &api.Container{
			Id: c.ID, PodSandboxId: c.Pod, Metadata: c.Config.GetMetadata(), Image: imageSpec(c), ImageRef: c.ImageRef, ImageId: c.ImageID,
			State: containerState(c), CreatedAt: c.CreatedAt.UnixNano(), Labels: c.Config.GetLabels(), Annotations: c.Config.GetAnnotations(),
		})
	}
	return out
}
