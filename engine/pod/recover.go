package pod

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/host/shim"
	"github.com/berthd/berth/store"
)

// Asides lists the rows that were set aside when the daemon started, of whatever kind.
func (p *Pods) Asides() []store.Aside {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return slices.Clone(p.mu.asides)
}

// Recover shows the pods of earlier daemons. It reads the rows and returns; what
// must be asked of shims, finished or torn down is done in the background, each
// pod for itself.
func (p *Pods) Recover(ctx context.Context) error {
	var pods []store.Pod
	var containers []store.PodContainer
	err := p.store.In(store.Scope{}).View(ctx, func(tx *store.Tx) (err error) {
		if pods, err = tx.AllPods(); err == nil {
			containers, err = tx.AllPodContainers()
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("read the rows of pods: %w", err)
	}
	var work []func(context.Context)
	for _, r := range pods {
		if pod := p.recallPod(ctx, r); pod != nil {
			work = append(work, p.podWork(pod)...)
		}
	}
	for _, r := range containers {
		if c := p.recallContainer(ctx, r); c != nil {
			work = append(work, p.containerWork(c)...)
		}
	}
	asides, err := p.store.Asides(ctx)
	if err != nil {
		return fmt.Errorf("read the rows that were set aside: %w", err)
	}
	p.mu.Lock()
	p.mu.asides = asides
	p.mu.Unlock()
	p.wg.Add(1)
	// owner: Close waits for it through wg.
	go func() {
		defer p.wg.Done()
		p.workOff(work)
	}()
	return nil
}

// recoverers is how many pods are asked about or torn down at once.
const recoverers = 8

func (p *Pods) workOff(work []func(context.Context)) {
	slots := make(chan struct{}, recoverers)
	var wg sync.WaitGroup
	for _, fn := range work {
		select {
		case slots <- struct{}{}:
		case <-p.life.Done():
			wg.Wait()
			return
		}
		wg.Add(1)
		// owner: this function waits for it below.
		go func() {
			defer func() { <-slots; wg.Done() }()
			fn(p.life)
		}()
	}
	wg.Wait()
}

// aside moves a row that makes no sense out of the way, so that it stops nothing.
func (p *Pods) aside(ctx context.Context, table, ns, id string, err error) {
	p.log.Error("a row is set aside: it cannot be read", "table", table, "id", id, "error", err)
	reason := err.Error()
	if err := p.scope(ns).Update(ctx, func(tx *store.Tx) error { return tx.SetAside(table, ns, id, reason) }); err != nil {
		p.log.Error("a row that cannot be read stays where it is", "table", table, "id", id, "error", err)
	}
}

// recallPod shows a pod by its row. After a reboot nothing of it is left in the
// world but its row and its addresses.
func (p *Pods) recallPod(ctx context.Context, r store.Pod) *Pod {
	pod, err := podOf(r)
	if err != nil {
		p.aside(ctx, "pod", r.Namespace, r.ID, err)
		return nil
	}
	pod.hidden = pod.State == store.PodCreating
	if pod.State == store.PodReady && pod.Boot != p.store.BootID() {
		pod.State = store.PodStopped // its row follows
	}
	p.showPod(pod)
	return pod
}

func (p *Pods) recallContainer(ctx context.Context, r store.PodContainer) *Container {
	c, err := containerOf(r)
	if err != nil {
		p.aside(ctx, "pod_container", r.Namespace, r.ID, err)
		return nil
	}
	c.hidden = c.State == store.ContainerCreating
	if c.State == store.ContainerRunning && c.Boot != p.store.BootID() {
		c.State, c.ExitCode, c.Reason, c.Pid, c.FinishedAt = store.ContainerExited, codeUnknown, reasonUnknown, 0, time.Now().UTC() // its row follows
	}
	p.showContainer(c)
	return c
}

// podWork is what is to be done for a pod that an earlier daemon left.
func (p *Pods) podWork(pod *Pod) []func(context.Context) {
	switch {
	case pod.State == store.PodCreating || pod.State == store.PodRemoving:
		return []func(context.Context){func(ctx context.Context) { p.resume(ctx, pod, "take back", p.teardown) }}
	case pod.State == store.PodStopped && !pod.Stopped:
		return []func(context.Context){func(ctx context.Context) { p.resume(ctx, pod, "stop", p.stopPod) }}
	case pod.State == store.PodReady && pod.Infra:
		return []func(context.Context){func(ctx context.Context) { p.settleInfra(ctx, pod) }}
	}
	return nil
}

// resume does what an earlier daemon had begun with a pod.
func (p *Pods) resume(ctx context.Context, pod *Pod, what string, fn func(context.Context, *Pod) error) {
	ctx, cancel := context.WithTimeout(ctx, makeTime)
	defer cancel()
	h, err := p.hold(ctx, "pod", pod.Namespace, pod.ID, what)
	if err != nil {
		return
	}
	defer h.release()
	k := key{pod.Namespace, pod.ID}
	p.mu.RLock()
	now := p.mu.pods[k]
	p.mu.RUnlock()
	if now == nil {
		return // removed meanwhile
	}
	if err := fn(ctx, now); err != nil {
		p.log.Error("a pod that an earlier daemon left is not settled", "pod", pod.ID, "step", what, "error", err)
		p.unhidePod(k)
	}
}

// containerWork is what is to be done for a container that an earlier daemon left.
func (p *Pods) containerWork(c *Container) []func(context.Context) {
	switch c.State {
	case store.ContainerCreating, store.ContainerRemoving:
		return []func(context.Context){func(ctx context.Context) {
			ctx, cancel := context.WithTimeout(ctx, makeTime)
			defer cancel()
			if err := p.removeLocked(ctx, c); err != nil {
				p.log.Error("a container that an earlier daemon left is not settled", "container", c.ID, "error", err)
				p.unhideContainer(key{c.Namespace, c.ID})
			}
		}}
	case store.ContainerRunning:
		return []func(context.Context){func(ctx context.Context) { p.settle(ctx, c) }}
	case store.ContainerExited:
		// Its end was written, and its task perhaps not taken away; over a reboot its
		// end is still to be written.
		return []func(context.Context){func(ctx context.Context) {
			if c.Boot != p.store.BootID() {
				p.writeEnd(ctx, c)
			}
			if err := p.endTask(ctx, c); err != nil {
				p.log.Error("an ended container's task stays for now", "container", c.ID, "error", err)
			}
		}}
	case store.ContainerCreated:
		// A start may have been cut short between its task and its row.
		return []func(context.Context){func(ctx context.Context) { p.settleCreated(ctx, c) }}
	}
	return nil
}

// writeEnd writes down the end of a container that a reboot has ended, unless it is
// being removed meanwhile.
func (p *Pods) writeEnd(ctx context.Context, c *Container) {
	h, err := p.hold(ctx, "container", c.Namespace, c.ID, "write down the end of")
	if err != nil {
		return
	}
	defer h.release()
	if now, err := p.Container(c.Namespace, c.ID); err != nil || now.State != store.ContainerExited {
		return
	}
	if _, err := p.putContainer(ctx, *c); err != nil {
		p.log.Error("the end of a container is not written", "container", c.ID, "error", err)
	}
}

// settleCreated finds out whether a container was being started when the earlier
// daemon died: if it runs it is running, if its task was only made it goes.
func (p *Pods) settleCreated(ctx context.Context, c *Container) {
	h, err := p.hold(ctx, "container", c.Namespace, c.ID, "settle")
	if err != nil {
		return
	}
	st, err := p.tasks.Get(ctx, p.scope(c.Namespace), c.ID, "")
	if err != nil {
		h.release()
		if !errs.Is(err, errs.NotFound) {
			p.log.Warn("the state of a container is not known", "container", c.ID, "error", err)
		}
		return
	}
	now, err := p.Container(c.Namespace, c.ID)
	if err == nil && now.State == store.ContainerCreated {
		switch st.Status {
		case shim.Running, shim.Paused, shim.Pausing, shim.Stopped:
			next := *now
			next.State, next.Pid, next.StartedAt = store.ContainerRunning, st.Pid, time.Now().UTC()
			_, err = p.putContainer(ctx, next)
		case shim.Created:
			err = p.endTask(ctx, now)
		}
	}
	h.release()
	if err != nil {
		p.log.Error("a container whose start was cut short is not settled", "container", c.ID, "error", err)
		return
	}
	p.settle(ctx, c)
}

// settleInfra stops a pod whose built-in container has died meanwhile.
func (p *Pods) settleInfra(ctx context.Context, pod *Pod) {
	alive, err := p.cfg.Sandbox.Alive(ctx, p.scope(pod.Namespace), pod.ID)
	if err == nil && !alive {
		p.infraEnded(ctx, pod)
	}
}

// infraEnded stops a pod whose built-in container is no more: the kernel has killed
// all that shared its PID namespace.
func (p *Pods) infraEnded(ctx context.Context, pod *Pod) {
	p.resume(ctx, pod, "stop", func(ctx context.Context, now *Pod) error {
		if now.State != store.PodReady {
			return nil
		}
		p.log.Warn("the infrastructure process of a pod has ended: the pod is stopped", "pod", pod.ID)
		return p.stopPod(ctx, now)
	})
}
