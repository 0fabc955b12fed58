package pod

import (
	"context"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/failpoint"
	"github.com/berthd/berth/engine/event"
	"github.com/berthd/berth/host/shim"
	"github.com/berthd/berth/store"
)

// Watch follows the ends of containers until ctx ends. It is subscribed before the
// pods are recovered, so that no end falls between.
func (p *Pods) Watch(ctx context.Context, sub *event.Subscription) error {
	for {
		all, err := sub.Next(ctx)
		if err != nil && ctx.Err() != nil {
			return nil
		}
		if err != nil { // we were too slow: read the present state instead
			p.log.Warn("events were lost, containers are looked at one by one", "error", err)
			sub.Close()
			if sub, err = p.cfg.Exchange.Subscribe(TaskFilter); err != nil {
				return err
			}
			p.settleAll(ctx)
			continue
		}
		for _, e := range all {
			p.heard(ctx, e)
		}
	}
}

// TaskFilter chooses the events that Watch wants.
const TaskFilter = `topic~="^/tasks/(exit|oom)"`

func (p *Pods) heard(ctx context.Context, e event.Envelope) {
	if id, ok := e.TaskOOM(); ok {
		p.oom(ctx, key{e.Namespace, id})
		return
	}
	ended, exec, ok := e.TaskExited()
	if !ok || exec != "" {
		return
	}
	k := key{ended.Namespace, ended.Container}
	p.mu.RLock()
	c, pod := p.mu.containers[k], p.mu.pods[k]
	p.mu.RUnlock()
	if pod != nil && pod.Infra && pod.State == store.PodReady {
		p.wg.Add(1)
		// owner: Close waits for it through wg.
		go func() {
			defer p.wg.Done()
			p.infraEnded(p.life, pod)
		}()
	}
	if c == nil {
		return
	}
	p.wg.Add(1)
	// owner: Close waits for it through wg. Each end waits only for its own
	// container.
	go func() {
		defer p.wg.Done()
		p.exited(p.life, c, shim.Exit{Pid: ended.Pid, Status: ended.Status, At: ended.At})
	}()
}

// oom notes that a container met its memory limit; its end will say so.
func (p *Pods) oom(ctx context.Context, k key) {
	p.mu.RLock()
	c := p.mu.containers[k]
	p.mu.RUnlock()
	if c == nil {
		return
	}
	p.ooms.add(k)
}

// exited writes the end of a container into its row, and deletes its task.
func (p *Pods) exited(ctx context.Context, c *Container, e shim.Exit) {
	h, err := p.hold(ctx, "container", c.Namespace, c.ID, "write down the end of")
	if err != nil {
		return
	}
	defer h.release()
	now, err := p.Container(c.Namespace, c.ID)
	if err != nil || now.State != store.ContainerRunning {
		return // somebody else was quicker, or it never got to run
	}
	next := *now
	next.State, next.ExitCode, next.FinishedAt, next.Pid = store.ContainerExited, int32(e.Status), e.At.UTC(), 0
	if next.FinishedAt.IsZero() || next.FinishedAt.Unix() <= 0 {
		next.FinishedAt = time.Now().UTC()
	}
	next.OOM = p.ooms.take(key{c.Namespace, c.ID})
	switch {
	case next.OOM:
		next.Reason = reasonOOM
	case e.Status == 0:
		next.Reason = reasonCompleted
	default:
		next.Reason = reasonError
	}
	p.finish(ctx, next)
}

// finish writes an ended container, takes its task away and shows its end: by then
// its log is whole.
func (p *Pods) finish(ctx context.Context, c Container) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	row, err := c.row()
	if err == nil {
		err = p.scope(c.Namespace).Update(ctx, func(tx *store.Tx) error { return tx.PutPodContainer(row) })
	}
	if err != nil {
		p.log.Error("the end of a container is not written", "container", c.ID, "error", err)
	}
	failpoint.Here("container.exit.written")
	if _, err := p.tasks.Delete(ctx, p.scope(c.Namespace), c.ID); err != nil && !errs.Is(err, errs.NotFound) {
		p.log.Warn("an ended container's task stays for now", "container", c.ID, "error", err)
	}
	p.showContainer(&c)
	p.feed.exit(&c)
	p.tellContainer(cri.ContainerEventType_CONTAINER_STOPPED_EVENT, &c)
	p.tellOnly(ctx, &c, "stopped", p.cfg.NRI.StopContainer)
}

// settle asks a container's shim how the container is, and writes down an end that
// no event told.
func (p *Pods) settle(ctx context.Context, c *Container) {
	st, err := p.tasks.Get(ctx, p.scope(c.Namespace), c.ID, "")
	switch {
	case err == nil && st.Status == shim.Stopped:
		p.exited(ctx, c, shim.Exit{Pid: st.Pid, Status: st.ExitStatus, At: st.ExitedAt})
	case errs.Is(err, errs.NotFound):
		p.lost(ctx, c)
	}
}

// lost writes down a container whose end nobody saw.
func (p *Pods) lost(ctx context.Context, c *Container) {
	h, err := p.hold(ctx, "container", c.Namespace, c.ID, "write down the end of")
	if err != nil {
		return
	}
	defer h.release()
	now, err := p.Container(c.Namespace, c.ID)
	if err != nil || now.State != store.ContainerRunning {
		return
	}
	next := *now
	next.State, next.ExitCode, next.Reason, next.Pid, next.FinishedAt = store.ContainerExited, codeUnknown, reasonUnknown, 0, time.Now().UTC()
	p.finish(ctx, next)
}

func (p *Pods) settleAll(ctx context.Context) {
	p.mu.RLock()
	var running []*Container
	for _, c := range p.mu.containers {
		if c.State == store.ContainerRunning {
			running = append(running, c)
		}
	}
	p.mu.RUnlock()
	for _, c := range running {
		p.settle(ctx, c)
	}
}
