package cri

import (
	"context"

	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/engine/pod"
)

// ContainerStats tells what one container uses now.
func (s Runtime) ContainerStats(ctx context.Context, r *api.ContainerStatsRequest) (*api.ContainerStatsResponse, error) {
	st, err := s.Pods.ContainerStats(ctx, namespace(ctx), r.GetContainerId())
	if err != nil {
		return nil, err
	}
	return &api.ContainerStatsResponse{Stats: st}, nil
}

func containerSelect(f *api.ContainerStatsFilter) pod.Select {
	return pod.Select{ID: f.GetId(), Pod: f.GetPodSandboxId(), Labels: f.GetLabelSelector()}
}

// ListContainerStats tells what the containers use that match.
func (s Runtime) ListContainerStats(ctx context.Context, r *api.ListContainerStatsRequest) (*api.ListContainerStatsResponse, error) {
	return &api.ListContainerStatsResponse{Stats: s.Pods.AllContainerStats(ctx, namespace(ctx), containerSelect(r.GetFilter()))}, nil
}

// StreamContainerStats is ListContainerStats for any number of containers.
func (s Runtime) StreamContainerStats(r *api.StreamContainerStatsRequest, out api.RuntimeService_StreamContainerStatsServer) error {
	return inBatches(s.Pods.AllContainerStats(out.Context(), namespace(out.Context()), containerSelect(r.GetFilter())), func(some []*api.ContainerStats) error {
		return out.Send(&api.StreamContainerStatsResponse{ContainerStats: some})
	})
}

// PodSandboxStats tells what one pod uses now.
func (s Runtime) PodSandboxStats(ctx context.Context, r *api.PodSandboxStatsRequest) (*api.PodSandboxStatsResponse, error) {
	st, err := s.Pods.PodStats(ctx, namespace(ctx), r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	return &api.PodSandboxStatsResponse{Stats: st}, nil
}

// ListPodSandboxStats tells what the pods use that match.
func (s Runtime) ListPodSandboxStats(ctx context.Context, r *api.ListPodSandboxStatsRequest) (*api.ListPodSandboxStatsResponse, error) {
	f := r.GetFilter()
	return &api.ListPodSandboxStatsResponse{Stats: s.Pods.AllPodStats(ctx, namespace(ctx), pod.Select{ID: f.GetId(), Labels: f.GetLabelSelector()})}, nil
}

// StreamPodSandboxStats is ListPodSandboxStats for any number of pods.
func (s Runtime) StreamPodSandboxStats(r *api.StreamPodSandboxStatsRequest, out api.RuntimeService_StreamPodSandboxStatsServer) error {
	f := r.GetFilter()
	return inBatches(s.Pods.AllPodStats(out.Context(), namespace(out.Context()), pod.Select{ID: f.GetId(), Labels: f.GetLabelSelector()}), func(some []*api.PodSandboxStats) error {
		return out.Send(&api.StreamPodSandboxStatsResponse{PodSandboxStats: some})
	})
}

// ListMetricDescriptors names the metrics of ListPodSandboxMetrics.
func (s Runtime) ListMetricDescriptors(context.Context, *api.ListMetricDescriptorsRequest) (*api.ListMetricDescriptorsResponse, error) {
	return &api.ListMetricDescriptorsResponse{Descriptors: pod.MetricDescriptors()}, nil
}

// ListPodSandboxMetrics reads the metrics of all pods, by cAdvisor's names.
func (s Runtime) ListPodSandboxMetrics(ctx context.Context, _ *api.ListPodSandboxMetricsRequest) (*api.ListPodSandboxMetricsResponse, error) {
	return &api.ListPodSandboxMetricsResponse{PodMetrics: s.Pods.Metrics(ctx, namespace(ctx))}, nil
}

// StreamPodSandboxMetrics is ListPodSandboxMetrics for any number of pods.
func (s Runtime) StreamPodSandboxMetrics(_ *api.StreamPodSandboxMetricsRequest, out api.RuntimeService_StreamPodSandboxMetricsServer) error {
	return inBatches(s.Pods.Metrics(out.Context(), namespace(out.Context())), func(some []*api.PodSandboxMetrics) error {
		return out.Send(&api.StreamPodSandboxMetricsResponse{PodSandboxMetrics: some})
	})
}
