package pod

import (
	"context"
	"encoding/json"
	"maps"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/engine/podspec"
	"github.com/berthd/berth/store"
)

// resourcesURL is how containerd's clients mark an OCI resources document.
const resourcesURL = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"

// Update changes the limits of a container that was created or runs: in its process
// tree first, then in its spec and its row.
func (p *Pods) Update(ctx context.Context, ns, id string, ask *cri.LinuxContainerResources, annotations map[string]string) error {
	return p.change(ctx, ns, id, "update", func(c *Container) error {
		h, err := p.handler(p.podOf(c).Handler)
		if err != nil {
			return err
		}
		err = p.applyUpdate(ctx, c, ask, annotations, func(sp *specs.Spec) (*specs.LinuxResources, error) {
			change, err := podspec.Resources(p.cfg.Host, h.Handler, ask)
			if err != nil {
				return nil, err
			}
			return p.agreed(ctx, c, sp, change)
		})
		if err != nil {
			return err
		}
		if now, err := p.Container(ns, c.ID); err == nil {
			p.tellOnly(ctx, now, "updated", p.cfg.NRI.PostUpdate)
		}
		return nil
	})
}

// applyUpdate carries a change of limits out. ask is what the container's config
// says of it.
func (p *Pods) applyUpdate(ctx context.Context, c *Container, ask *cri.LinuxContainerResources, annotations map[string]string, decide func(*specs.Spec) (*specs.LinuxResources, error)) error {
	if c.State != store.ContainerCreated && c.State != store.ContainerRunning {
		return errs.New(errs.FailedPrecondition, "it is %s", c.State)
	}
	v := p.scope(c.Namespace)
	row, err := store.Get(ctx, v, func(tx *store.Tx) (store.Container, error) { return tx.Container(c.ID) })
	if err != nil {
		return err
	}
	var sp specs.Spec
	if err := json.Unmarshal(row.Spec.Value, &sp); err != nil {
		return errs.New(errs.DataLoss, "its spec cannot be read: %v", err)
	}
	change, err := decide(&sp)
	if err != nil {
		return err
	}
	podspec.Merge(&sp, change)
	if c.State == store.ContainerRunning {
		raw, err := json.Marshal(change)
		if err != nil {
			return err
		}
		if err := p.tasks.Update(ctx, v, c.ID, store.Any{TypeURL: resourcesURL, Value: raw}, annotations); err != nil {
			return err
		}
	}
	if row.Spec.Value, err = json.Marshal(&sp); err != nil {
		return err
	}
	next := *c
	next.Config = proto.CloneOf(c.Config)
	if next.Config.Linux == nil {
		next.Config.Linux = &cri.LinuxContainerConfig{}
	}
	next.Config.Linux.Resources = mergeResources(c.Config.GetLinux().GetResources(), ask)
	prow, err := next.row()
	if err != nil {
		return err
	}
	err = v.Update(ctx, func(tx *store.Tx) error {
		if _, err := tx.UpdateContainer(row, "spec"); err != nil {
			return err
		}
		return tx.PutPodContainer(prow)
	})
	if err == nil {
		p.showContainer(&next)
	}
	return err
}

// mergeResources keeps what the request does not speak of: in CRI zero means "leave
// it".
func mergeResources(old, ask *cri.LinuxContainerResources) *cri.LinuxContainerResources {
	if old == nil {
		return proto.CloneOf(ask)
	}
	out := proto.CloneOf(old)
	if ask == nil {
		return out
	}
	for _, f := range []struct{ to, from *int64 }{
		{&out.CpuPeriod, &ask.CpuPeriod}, {&out.CpuQuota, &ask.CpuQuota}, {&out.CpuShares, &ask.CpuShares},
		{&out.MemoryLimitInBytes, &ask.MemoryLimitInBytes}, {&out.OomScoreAdj, &ask.OomScoreAdj}, {&out.MemorySwapLimitInBytes, &ask.MemorySwapLimitInBytes},
	} {
		if *f.from != 0 {
			*f.to = *f.from
		}
	}
	if ask.CpusetCpus != "" {
		out.CpusetCpus = ask.CpusetCpus
	}
	if ask.CpusetMems != "" {
		out.CpusetMems = ask.CpusetMems
	}
	if len(ask.HugepageLimits) > 0 {
		out.HugepageLimits = ask.HugepageLimits
	}
	if len(ask.Unified) > 0 {
		out.Unified = maps.Clone(out.Unified)
		if out.Unified == nil {
			out.Unified = map[string]string{}
		}
		maps.Copy(out.Unified, ask.Unified)
	}
	return out
}

// UpdatePod notes the resources of a whole pod. Its cgroup is the kubelet's; what
// is noted is for plugins and for who asks.
func (p *Pods) UpdatePod(ctx context.Context, ns, id string, overhead, resources *cri.LinuxContainerResources) error {
	pod, err := p.Pod(ns, id)
	if err != nil {
		return err
	}
	h, err := p.hold(ctx, "pod", ns, pod.ID, "update")
	if err != nil {
		return err
	}
	defer h.release()
	if pod, err = p.Pod(ns, pod.ID); err != nil {
		return err
	}
	next := *pod
	next.Config = proto.CloneOf(pod.Config)
	if next.Config.Linux == nil {
		next.Config.Linux = &cri.LinuxPodSandboxConfig{}
	}
	if overhead != nil {
		next.Config.Linux.Overhead = overhead
	}
	if resources != nil {
		next.Config.Linux.Resources = resources
	}
	view := p.nriPod(&next)
	if err := p.cfg.NRI.UpdatePod(ctx, view, podspec.NRIResources(overhead), podspec.NRIResources(resources)); err != nil {
		return err
	}
	if _, err = p.putPod(ctx, next); err == nil {
		if err := p.cfg.NRI.PostUpdatePod(ctx, view); err != nil {
			p.log.Warn("a plugin was told of an updated pod and did not take it", "pod", pod.ID, "error", err)
		}
	}
	return err
}

// ReopenLog has a running container's log go on in a new file at its path.
func (p *Pods) ReopenLog(ctx context.Context, ns, id string) error {
	c, err := p.Container(ns, id)
	if err != nil {
		return err
	}
	if c.State != store.ContainerRunning {
		return errs.New(errs.FailedPrecondition, "reopen the log of container %s: it is %s", c.ID, c.State)
	}
	return p.tasks.ReopenLog(ctx, p.scope(ns), c.ID)
}
