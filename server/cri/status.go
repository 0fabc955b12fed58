package cri

import (
	"context"

	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/engine/pod"
)

// Version names the interface and the runtime.
func (s Runtime) Version(context.Context, *api.VersionRequest) (*api.VersionResponse, error) {
	return &api.VersionResponse{Version: "0.1.0", RuntimeName: "berth", RuntimeVersion: s.BuildVersion, RuntimeApiVersion: "v1"}, nil
}

// Status tells whether pods can be run now, and what the handlers can do.
func (s Runtime) Status(ctx context.Context, r *api.StatusRequest) (*api.StatusResponse, error) {
	st, err := s.Pods.Status(ctx, r.GetVerbose())
	if err != nil {
		return nil, err
	}
	out := &api.StatusResponse{
		Status: &api.RuntimeStatus{}, Info: st.Info,
		Features: &api.RuntimeFeatures{SupplementalGroupsPolicy: true, UserNamespacesHostNetwork: true, MountOptions: true},
	}
	for _, c := range st.Conditions {
		out.Status.Conditions = append(out.Status.Conditions, &api.RuntimeCondition{Type: c.Type, Status: c.OK, Reason: c.Reason, Message: c.Message})
	}
	for _, h := range st.Handlers {
		out.RuntimeHandlers = append(out.RuntimeHandlers, &api.RuntimeHandler{
			Name: h.Name, Features: &api.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: h.RecursiveReadOnly, UserNamespaces: h.UserNamespaces},
		})
	}
	return out, nil
}

// UpdateRuntimeConfig takes the pod network of a node that gets it from its
// cluster's control plane.
func (s Runtime) UpdateRuntimeConfig(ctx context.Context, r *api.UpdateRuntimeConfigRequest) (*api.UpdateRuntimeConfigResponse, error) {
	if err := s.Pods.SetPodCIDR(ctx, r.GetRuntimeConfig().GetNetworkConfig().GetPodCidr()); err != nil {
		return nil, err
	}
	return &api.UpdateRuntimeConfigResponse{}, nil
}

// RuntimeConfig tells the kubelet how cgroups are named here.
func (s Runtime) RuntimeConfig(context.Context, *api.RuntimeConfigRequest) (*api.RuntimeConfigResponse, error) {
	driver := api.CgroupDriver_CGROUPFS
	if s.Pods.CgroupDriver() == pod.Systemd {
		driver = api.CgroupDriver_SYSTEMD
	}
	return &api.RuntimeConfigResponse{Linux: &api.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}
