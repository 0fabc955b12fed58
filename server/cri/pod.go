package cri

import (
	"context"
	"strings"
	"time"

	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/engine/pod"
	"github.com/berthd/berth/store"
)

// RunPodSandbox makes a pod; asked again for the same name it gives the same pod.
func (s Runtime) RunPodSandbox(ctx context.Context, r *api.RunPodSandboxRequest) (*api.RunPodSandboxResponse, error) {
	id, err := s.Pods.Run(ctx, namespace(ctx), r.GetConfig(), r.GetRuntimeHandler())
	if err != nil {
		return nil, err
	}
	return &api.RunPodSandboxResponse{PodSandboxId: id}, nil
}

// StopPodSandbox ends all that runs in a pod and gives back its addresses.
func (s Runtime) StopPodSandbox(ctx context.Context, r *api.StopPodSandboxRequest) (*api.StopPodSandboxResponse, error) {
	if err := s.Pods.Stop(ctx, namespace(ctx), r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return &api.StopPodSandboxResponse{}, nil
}

// RemovePodSandbox takes a pod away, by force if it runs.
func (s Runtime) RemovePodSandbox(ctx context.Context, r *api.RemovePodSandboxRequest) (*api.RemovePodSandboxResponse, error) {
	if err := s.Pods.Remove(ctx, namespace(ctx), r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return &api.RemovePodSandboxResponse{}, nil
}

// PodSandboxStatus tells all about one pod.
func (s Runtime) PodSandboxStatus(ctx context.Context, r *api.PodSandboxStatusRequest) (*api.PodSandboxStatusResponse, error) {
	v, err := s.Pods.View(ctx, namespace(ctx), r.GetPodSandboxId(), r.GetVerbose())
	if err != nil {
		return nil, err
	}
	return &api.PodSandboxStatusResponse{
		Status: podStatus(v.Pod), Info: v.Info, ContainersStatuses: containerStatuses(v.Containers), Timestamp: time.Now().UnixNano(),
	}, nil
}

// ListPodSandbox lists the pods that match.
func (s Runtime) ListPodSandbox(ctx context.Context, r *api.ListPodSandboxRequest) (*api.ListPodSandboxResponse, error) {
	return &api.ListPodSandboxResponse{Items: listPods(s.Pods.Pods(namespace(ctx)), r.GetFilter())}, nil
}

// StreamPodSandboxes is ListPodSandbox for any number of pods.
func (s Runtime) StreamPodSandboxes(r *api.StreamPodSandboxesRequest, out api.RuntimeService_StreamPodSandboxesServer) error {
	return inBatches(listPods(s.Pods.Pods(namespace(out.Context())), r.GetFilter()), func(some []*api.PodSandbox) error {
		return out.Send(&api.StreamPodSandboxesResponse{PodSandboxes: some})
	})
}

// UpdatePodSandboxResources notes the resources of a pod as a whole.
func (s Runtime) UpdatePodSandboxResources(ctx context.Context, r *api.UpdatePodSandboxResourcesRequest) (*api.UpdatePodSandboxResourcesResponse, error) {
	if err := s.Pods.UpdatePod(ctx, namespace(ctx), r.GetPodSandboxId(), r.GetOverhead(), r.GetResources()); err != nil {
		return nil, err
	}
	return &api.UpdatePodSandboxResourcesResponse{}, nil
}

func podState(p *pod.Pod) api.PodSandboxState {
	if p.State == store.PodReady {
		return api.PodSandboxState_SANDBOX_READY
	}
	return api.PodSandboxState_SANDBOX_NOTREADY
}

func podStatus(p *pod.Pod) *api.PodSandboxStatus {
	st := &api.PodSandboxStatus{
		Id: p.ID, Metadata: p.Config.GetMetadata(), State: podState(p), CreatedAt: p.CreatedAt.UnixNano(), Labels: p.Config.GetLabels(),
		Annotations: p.Config.GetAnnotations(), RuntimeHandler: p.Handler, Network: &api.PodSandboxNetworkStatus{},
		Linux: &api.LinuxPodSandboxStatus{Namespaces: &api.Namespace{Options: namespaceOptions(p)}},
	}
	for i, ip := range p.IPs {
		if i == 0 {
			st.Network.Ip = ip
			continue
		}
		st.Network.AdditionalIps = append(st.Network.AdditionalIps, &api.PodIP{Ip: ip})
	}
	return st
}

// namespaceOptions are those that the pod was asked for.
func namespaceOptions(p *pod.Pod) *api.NamespaceOption {
	if o := p.Config.GetLinux().GetSecurityContext().GetNamespaceOptions(); o != nil {
		return o
	}
	return &api.NamespaceOption{}
}

func listPods(all []*pod.Pod, f *api.PodSandboxFilter) []*api.PodSandbox {
	var out []*api.PodSandbox
	for _, p := range all {
		if !strings.HasPrefix(p.ID, f.GetId()) || f.GetState() != nil && f.GetState().GetState() != podState(p) || !selects(f.GetLabelSelector(), p.Config.GetLabels()) {
			continue
		}
		out = append(out, &api.PodSandbox{
			Id: p.ID, Metadata: p.Config.GetMetadata(), State: podState(p), CreatedAt: p.CreatedAt.UnixNano(), Labels: p.Config.GetLabels(),
			Annotations: p.Config.GetAnnotations(), RuntimeHandler: p.Handler,
		})
	}
	return out
}

func selects(selector, labels map[string]string) bool {
	for k, want := range selector {
		if have, ok := labels[k]; !ok || have != want {
			return false
		}
	}
	return true
}
