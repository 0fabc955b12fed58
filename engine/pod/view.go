package pod

import (
	"context"
	"encoding/json"

	"github.com/berthd/berth/store"
)

// View is a pod with its containers, at one moment, and for those who debug what
// else there is to know.
type View struct {
	*Pod
	Containers []*Container
	Info       map[string]string // JSON by topic; nil unless asked for
}

// ContainerView is a container, at one moment.
type ContainerView struct {
	*Container
	Info map[string]string
}

// View returns a pod with its containers.
func (p *Pods) View(ctx context.Context, ns, id string, verbose bool) (View, error) {
	pod, err := p.Pod(ns, id)
	if err != nil {
		return View{}, err
	}
	v := View{Pod: pod, Containers: p.Containers(ns, pod.ID)}
	if verbose {
		v.Info, err = p.podInfo(ctx, pod)
	}
	return v, err
}

// ContainerView returns a container.
func (p *Pods) ContainerView(ctx context.Context, ns, id string, verbose bool) (ContainerView, error) {
	c, err := p.Container(ns, id)
	if err != nil {
		return ContainerView{}, err
	}
	v := ContainerView{Container: c}
	if verbose {
		v.Info, err = p.containerInfo(ctx, c)
	}
	return v, err
}

// podInfo is what `crictl inspectp` shows under info. The names of the fields are
// those that tools read of containerd.
func (p *Pods) podInfo(ctx context.Context, pod *Pod) (map[string]string, error) {
	h := p.handlers()[pod.Handler]
	if h == nil {
		h = &Handler{}
	}
	set := p.cfg.Sandbox.Namespaces(pod.ID)
	info := struct {
		Pid            int             `json:"pid"`
		ProcessStatus  string          `json:"processStatus"`
		NetClosed      bool            `json:"netNamespaceClosed"`
		NetNS          string          `json:"netNamespace,omitempty"`
		RuntimeHandler string          `json:"runtimeHandler"`
		RuntimeType    string          `json:"runtimeType"`
		Snapshotter    string          `json:"snapshotter"`
		State          string          `json:"state"`
		Config         any             `json:"config"`
		CNIResult      json.RawMessage `json:"cniResult,omitempty"`
		RuntimeSpec    json.RawMessage `json:"runtimeSpec,omitempty"`
	}{
		Pid: pod.InfraPid, ProcessStatus: "none", NetClosed: set.Net == "", NetNS: set.Net, RuntimeHandler: pod.Handler, RuntimeType: h.Runtime,
		Snapshotter: h.Snapshotter, State: string(pod.State), Config: pod.Config,
	}
	if pod.Infra {
		info.ProcessStatus = "deleted"
		if alive, err := p.cfg.Sandbox.Alive(ctx, p.scope(pod.Namespace), pod.ID); err == nil && alive {
			info.ProcessStatus = "running"
		}
		info.RuntimeSpec = p.specIn(ctx, pod.Namespace, pod.ID)
	}
	if json.Valid(pod.Plan) {
		info.CNIResult = pod.Plan
	}
	return infoMap(info)
}

// containerInfo is what `crictl inspect` shows under info.
func (p *Pods) containerInfo(ctx context.Context, c *Container) (map[string]string, error) {
	h := p.handlers()[p.podOf(c).Handler]
	if h == nil {
		h = &Handler{}
	}
	return infoMap(struct {
		SandboxID   string          `json:"sandboxID"`
		Pid         uint32          `json:"pid"`
		Removing    bool            `json:"removing"`
		SnapshotKey string          `json:"snapshotKey"`
		Snapshotter string          `json:"snapshotter"`
		RuntimeType string          `json:"runtimeType"`
		State       string          `json:"state"`
		Config      any             `json:"config"`
		RuntimeSpec json.RawMessage `json:"runtimeSpec,omitempty"`
	}{c.Pod, c.Pid, c.State == store.ContainerRemoving, c.ID, c.Snapshot, h.Runtime, string(c.State), c.Config, p.specIn(ctx, c.Namespace, c.ID)})
}

// specIn reads a container's OCI spec out of its row.
func (p *Pods) specIn(ctx context.Context, ns, id string) json.RawMessage {
	c, err := store.Get(ctx, p.scope(ns), func(tx *store.Tx) (store.Container, error) { return tx.Container(id) })
	if err != nil || !json.Valid(c.Spec.Value) {
		return nil
	}
	return c.Spec.Value
}

func infoMap(v any) (map[string]string, error) {
	b, err := json.Marshal(v)
	return map[string]string{"info": string(b)}, err
}
