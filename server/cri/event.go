package cri

import (
	api "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// GetContainerEvents tells each change of pods and containers with the state that
// the pod had then, until the caller goes.
func (s Runtime) GetContainerEvents(_ *api.GetEventsRequest, out api.RuntimeService_GetContainerEventsServer) error {
	l := s.Pods.Listen(namespace(out.Context()))
	defer l.Close()
	for {
		all, err := l.Next(out.Context())
		if err != nil {
			return err
		}
		for _, e := range all {
			m := &api.ContainerEventResponse{
				ContainerId: e.ID, ContainerEventType: e.Type, CreatedAt: e.At.UnixNano(), ContainersStatuses: containerStatuses(e.Containers),
			}
			if e.PodNow != nil {
				m.PodSandboxStatus = podStatus(e.PodNow)
			}
			if err := out.Send(m); err != nil {
				return err
			}
		}
	}
}
