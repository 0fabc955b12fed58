package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/engine/podspec"
	"github.com/berthd/berth/store"
)

// What plugins are told, and when (host/nri). A plugin can prevent a pod or a
// container; what ends or is gone it can only be told of, and its error is logged.
//
//	RunPod ── Create ─ PostCreate ── Start ─ PostStart ── (Update ─ PostUpdate) ── Stop ── Remove ── StopPod ── RemovePod

func (p *Pods) nriPod(pod *Pod) *api.PodSandbox {
	systemd := false
	if h := p.handlers()[pod.Handler]; h != nil {
		systemd = h.SystemdCgroup
	}
	return podspec.NRIPod(p.specPod(pod), systemd, pod.Handler, pod.IPs)
}

var nriStates = map[store.ContainerState]api.ContainerState{
	store.ContainerCreated: api.ContainerState_CONTAINER_CREATED, store.ContainerRunning: api.ContainerState_CONTAINER_RUNNING,
	store.ContainerExited: api.ContainerState_CONTAINER_STOPPED, store.ContainerRemoving: api.ContainerState_CONTAINER_STOPPED,
}

// nriContainer is a container with a spec, which may be nil if it is lost.
func (p *Pods) nriContainer(c *Container, sp *specs.Spec) *api.Container {
	_, digest, _ := strings.Cut(c.ImageRef, "@")
	st := podspec.NRIState{
		ID: c.ID, Pod: c.Pod, Config: c.Config, State: nriStates[c.State], Pid: c.Pid, Created: c.CreatedAt, Started: c.StartedAt, Finished: c.FinishedAt,
		ExitCode: c.ExitCode, Reason: c.Reason, Message: c.Message, Image: c.ImageName, Digest: digest, ConfigDigest: c.ImageID,
	}
	if h := p.handlers()[p.podOf(c).Handler]; h != nil {
		st.UnsetSeccomp = h.Settings.UnsetSeccomp
	}
	return podspec.NRIContainer(sp, st)
}

// storedSpec reads a container's spec.
func (p *Pods) storedSpec(ctx context.Context, c *Container) (*specs.Spec, error) {
	row, err := store.Get(ctx, p.scope(c.Namespace), func(tx *store.Tx) (store.Container, error) { return tx.Container(c.ID) })
	if err != nil {
		return nil, err
	}
	sp := &specs.Spec{}
	if err := json.Unmarshal(row.Spec.Value, sp); err != nil {
		return nil, errs.New(errs.DataLoss, "the spec of container %s cannot be read: %v", c.ID, err)
	}
	return sp, nil
}

// notice tells plugins of what has happened to a container, if there are any.
func (p *Pods) notice(ctx context.Context, c *Container, what string, tell func(context.Context, *api.PodSandbox, *api.Container) error) error {
	if !p.cfg.NRI.Any() {
		return nil
	}
	sp, err := p.storedSpec(ctx, c)
	if err != nil && !errs.Is(err, errs.NotFound) {
		p.log.Warn("plugins get a container without its spec", "container", c.ID, "error", err)
	}
	if err := tell(ctx, p.nriPod(p.podOf(c)), p.nriContainer(c, sp)); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// tellOnly is notice for what cannot be prevented any more.
func (p *Pods) tellOnly(ctx context.Context, c *Container, what string, tell func(context.Context, *api.PodSandbox, *api.Container) error) {
	if err := p.notice(ctx, c, what, tell); err != nil {
		p.log.Warn("a plugin was told of a container and did not take it", "container", c.ID, "error", err)
	}
}

// announce asks the plugins about a pod that is made. Call done when it is seen, or
// has been taken back.
func (p *Pods) announce(ctx context.Context, m *making, pod *Pod) (done func(), err error) {
	m.at("asking the NRI plugins")
	view := p.nriPod(pod)
	done, err = p.cfg.NRI.RunPod(ctx, view)
	if err != nil {
		p.podGone(ctx, view)
	}
	return done, err
}

// podGone tells that a pod is no more.
func (p *Pods) podGone(ctx context.Context, pod *api.PodSandbox) {
	if err := p.cfg.NRI.RemovePod(context.WithoutCancel(ctx), pod); err != nil {
		p.log.Warn("a plugin was told of a removed pod and did not take it", "pod", pod.GetId(), "error", err)
	}
}

// adjust asks the plugins about a container that is being made, and returns its spec
// as they want it. Call done when it is seen, or has been taken back.
func (p *Pods) adjust(ctx context.Context, mk *making, pod *Pod, c *Container, h *Handler, sp *specs.Spec) (out *specs.Spec, done func(), err error) {
	if p.cfg.NRI == nil {
		return sp, func() {}, nil
	}
	mk.at("asking the NRI plugins")
	made := *c
	made.State = store.ContainerCreated
	with := func(a *api.ContainerAdjustment) (*specs.Spec, error) {
		if a == nil {
			return sp, nil
		}
		s, err := podspec.Clone(sp)
		if err != nil {
			return nil, err
		}
		return s, podspec.Adjust(p.cfg.Host, h.Handler, s, a)
	}
	adjustment, done, err := p.cfg.NRI.Create(ctx, p.nriPod(pod), func(a *api.ContainerAdjustment) (*api.Container, error) {
		s, err := with(a)
		return p.nriContainer(&made, s), err
	})
	if err == nil {
		out, err = with(adjustment)
	}
	if err != nil {
		p.containerGone(ctx, pod, &made, sp)
	}
	return out, done, err
}

// containerGone tells that a container that was asked about is not made after all.
func (p *Pods) containerGone(ctx context.Context, pod *Pod, c *Container, sp *specs.Spec) {
	if err := p.cfg.NRI.RemoveContainer(context.WithoutCancel(ctx), p.nriPod(pod), p.nriContainer(c, sp)); err != nil {
		p.log.Warn("a plugin was told of a container that is not made and did not take it", "container", c.ID, "error", err)
	}
}

// tellStopped tells that a pod has ended: after its containers' ends, before its
// network goes.
func (p *Pods) tellStopped(ctx context.Context, pod *Pod) {
	if !p.cfg.NRI.Any() {
		return
	}
	for _, c := range p.Containers(pod.Namespace, pod.ID) {
		unlock, err := p.locks.Lock(ctx, "container/"+c.Namespace+"/"+c.ID) // whoever tells of its end holds it
		if err != nil {
			return
		}
		unlock()
	}
	if err := p.cfg.NRI.StopPod(ctx, p.nriPod(pod)); err != nil {
		p.log.Warn("a plugin was told of a stopped pod and did not take it", "pod", pod.ID, "error", err)
	}
}

// agreed is what plugins make of an update.
func (p *Pods) agreed(ctx context.Context, c *Container, sp *specs.Spec, change *specs.LinuxResources) (*specs.LinuxResources, error) {
	if !p.cfg.NRI.Any() {
		return change, nil
	}
	r, err := p.cfg.NRI.UpdateContainer(ctx, p.nriPod(p.podOf(c)), p.nriContainer(c, sp), podspec.OCIToNRI(change))
	if err != nil {
		return nil, err
	}
	return podspec.FromNRI(p.cfg.Host, r)
}

// Snapshot lists the pods that are ready and the containers that are not over, for
// a plugin that joins (nri.Runtime).
func (p *Pods) Snapshot(ctx context.Context) ([]*api.PodSandbox, []*api.Container, error) {
	p.mu.RLock()
	var pods []*Pod
	for _, pod := range p.mu.pods {
		if pod.shown() && pod.State == store.PodReady {
			pods = append(pods, pod)
		}
	}
	var containers []*Container
	for _, c := range p.mu.containers {
		if c.shown() && (c.State == store.ContainerCreated || c.State == store.ContainerRunning) {
			containers = append(containers, c)
		}
	}
	p.mu.RUnlock()
	var outPods []*api.PodSandbox
	for _, pod := range pods {
		outPods = append(outPods, p.nriPod(pod))
	}
	var out []*api.Container
	for _, c := range containers {
		sp, err := p.storedSpec(ctx, c)
		if errs.Is(err, errs.NotFound) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, nil, err
		}
		out = append(out, p.nriContainer(c, sp))
	}
	return outPods, out, nil
}

// ofID finds a container by its whole id, in whatever namespace.
func (p *Pods) ofID(id string) (*Container, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	for k, c := range p.mu.containers {
		if k.id == id && c.shown() {
			return c, nil
		}
	}
	return nil, errs.New(errs.NotFound, "container %q: not found", id)
}

// updateByPlugin changes a container's limits as a plugin wants it.
func (p *Pods) updateByPlugin(ctx context.Context, u *api.ContainerUpdate) error {
	c, err := p.ofID(u.GetContainerId())
	if err != nil {
		return err
	}
	change, err := podspec.FromNRI(p.cfg.Host, u.GetLinux().GetResources())
	if err != nil {
		return err
	}
	return p.change(ctx, c.Namespace, c.ID, "update", func(c *Container) error {
		return p.applyUpdate(ctx, c, criResources(change), nil, func(*specs.Spec) (*specs.LinuxResources, error) { return change, nil })
	})
}

// criResources says limits in CRI's words, for the container's status.
func criResources(r *specs.LinuxResources) *cri.LinuxContainerResources {
	out := &cri.LinuxContainerResources{Unified: r.Unified}
	if c := r.CPU; c != nil {
		out.CpusetCpus, out.CpusetMems = c.Cpus, c.Mems
		if c.Shares != nil {
			out.CpuShares = int64(*c.Shares)
		}
		if c.Quota != nil {
			out.CpuQuota = *c.Quota
		}
		if c.Period != nil {
			out.CpuPeriod = int64(*c.Period)
		}
	}
	if m := r.Memory; m != nil {
		if m.Limit != nil {
			out.MemoryLimitInBytes = *m.Limit
		}
		if m.Swap != nil {
			out.MemorySwapLimitInBytes = *m.Swap
		}
	}
	for _, l := range r.HugepageLimits {
		out.HugepageLimits = append(out.HugepageLimits, &cri.HugepageLimit{PageSize: l.Pagesize, Limit: l.Limit})
	}
	return out
}

// evictGrace is how long a container has to end that a plugin does not want here.
const evictGrace = 10 * time.Second

// Plugins is what NRI plugins may do with pods (nri.Runtime).
type Plugins struct{ *Pods }

// Update changes the limits of one container.
func (p Plugins) Update(ctx context.Context, u *api.ContainerUpdate) error {
	return p.updateByPlugin(ctx, u)
}

// Evict stops a container.
func (p Plugins) Evict(ctx context.Context, id, reason string) error {
	c, err := p.ofID(id)
	if err != nil {
		return err
	}
	if err := p.StopContainer(ctx, c.Namespace, c.ID, evictGrace); err != nil {
		return errors.Join(err, errs.New(errs.Aborted, "evicted because: %s", reason))
	}
	return nil
}
