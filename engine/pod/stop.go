package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/failpoint"
	"github.com/berthd/berth/engine/task"
	"github.com/berthd/berth/host/mount"
	"github.com/berthd/berth/store"
)

// StopContainer ends a container: its stop signal, the grace time, then SIGKILL.
// What does not run, or is not there, is no error. A second call while one waits
// may shorten the wait, and does not send the signal again.
func (p *Pods) StopContainer(ctx context.Context, ns, id string, grace time.Duration) error {
	c, err := p.Container(ns, id)
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	// A start that is under way is waited for: it would come up behind our back.
	h, err := p.hold(ctx, "container", ns, c.ID, "stop")
	if err != nil {
		return err
	}
	h.release()
	v := p.scope(ns)
	gone := p.feed.waitExit(ns, c.ID)
	defer gone.cancel()
	if now, err := p.Container(ns, c.ID); err != nil || now.State != store.ContainerRunning {
		return errs.Ignore(err, errs.NotFound)
	}
	if grace > 0 {
		unlock, first := p.stops.TryLock(ns + "/" + c.ID)
		if first {
			defer unlock()
			short, cancel := context.WithTimeout(ctx, min(grace, task.AnswerTime))
			err := p.tasks.Kill(short, v, c.ID, "", uint32(c.StopSignal), false)
			cancel()
			// One whose shim hangs gets no signal, and what it gets after the grace time.
			if err != nil && !over(err) && !errors.Is(err, context.DeadlineExceeded) {
				return fmt.Errorf("stop container %s: %w", c.ID, err)
			}
		}
		t := time.NewTimer(grace)
		defer t.Stop()
		select {
		case <-gone.done:
			return nil
		case <-t.C:
		case <-ctx.Done():
			return fmt.Errorf("stop container %s: it does not end by signal %d: %w", c.ID, c.StopSignal, context.Cause(ctx))
		}
	}
	return p.killContainer(ctx, c, gone.done)
}

// over reports an error that means that the process has ended already.
func over(err error) bool { return errs.Is(err, errs.NotFound) }

// killContainer kills all of a container and waits until its end is in its row.
func (p *Pods) killContainer(ctx context.Context, c *Container, gone <-chan struct{}) error {
	short, cancel := context.WithTimeout(ctx, task.AnswerTime)
	err := p.tasks.Kill(short, p.scope(c.Namespace), c.ID, "", uint32(syscall.SIGKILL), true)
	cancel()
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil && p.lastIn(c) {
		err = p.tasks.KillHungShim(ctx, p.scope(c.Namespace), c.ID)
	}
	if err != nil && !over(err) {
		return fmt.Errorf("kill container %s: %w", c.ID, err)
	}
	if over(err) {
		// No event may be coming for a task that is gone: look for ourselves.
		p.settle(context.WithoutCancel(ctx), c)
	}
	t := time.NewTimer(stopTime)
	defer t.Stop()
	select {
	case <-gone:
		return nil
	case <-t.C:
		return errs.New(errs.Unavailable, "container %s (pid %d) was killed %s ago and still runs: a process in it is stuck in the kernel, or its shim hangs", c.ID, c.Pid, stopTime)
	case <-ctx.Done():
		return fmt.Errorf("container %s was killed and has not ended yet: %w", c.ID, context.Cause(ctx))
	}
}

// lastIn reports whether a shim that hangs may be killed for a container's end: no
// other container of its pod is to live on.
func (p *Pods) lastIn(c *Container) bool {
	pod := p.podOf(c)
	if pod.State != store.PodReady {
		return true
	}
	if pod.Infra {
		return false
	}
	for _, other := range p.Containers(c.Namespace, c.Pod) {
		if other.ID != c.ID && other.State == store.ContainerRunning {
			return false
		}
	}
	return true
}

// RemoveContainer takes a container away, by force if it runs. What is not there is
// no error.
func (p *Pods) RemoveContainer(ctx context.Context, ns, id string) error {
	c, err := p.Container(ns, id)
	if err != nil {
		return errs.Ignore(err, errs.NotFound)
	}
	if c.State == store.ContainerRunning {
		if err := p.StopContainer(ctx, ns, c.ID, 0); err != nil {
			return err
		}
	}
	err = p.change(ctx, ns, c.ID, "remove", func(c *Container) error { return p.removeContainer(ctx, c) })
	return errs.Ignore(err, errs.NotFound)
}

// removeContainer is the one way down for a container, half made or whole. It goes
// through all steps; the row stays in state removing while anything remains.
func (p *Pods) removeContainer(ctx context.Context, c *Container) error {
	next := *c
	next.State = store.ContainerRemoving
	if _, err := p.putContainer(ctx, next); err != nil {
		return err
	}
	failpoint.Here("container.remove.written")
	if err := errors.Join(p.endTask(ctx, c), p.removeContainerFiles(c)); err != nil {
		return err
	}
	failpoint.Here("container.remove.task")
	if c.State != store.ContainerCreating {
		p.tellOnly(ctx, c, "removed", p.cfg.NRI.RemoveContainer)
	}
	err := p.scope(c.Namespace).Update(ctx, func(tx *store.Tx) error {
		all := []error{errs.Ignore(tx.DeleteContainer(c.ID), errs.NotFound), errs.Ignore(tx.RemoveSnapshot(c.Snapshot, c.ID), errs.NotFound)}
		for n, m := range c.Config.GetMounts() {
			if m.GetImage().GetImage() != "" {
				all = append(all, errs.Ignore(tx.RemoveSnapshot(c.Snapshot, imageSnapshot(c, n)), errs.NotFound))
			}
		}
		return errors.Join(append(all, tx.DeletePodContainer(c.ID))...)
	})
	if err != nil {
		return err
	}
	p.cfg.GC.Soon()
	p.forgetContainer(key{c.Namespace, c.ID})
	if c.State != store.ContainerCreating {
		p.tellContainer(cri.ContainerEventType_CONTAINER_DELETED_EVENT, c)
	}
	return nil
}

// containerDir holds what a container's mounts need; it follows from the id.
func (p *Pods) containerDir(c *Container) string {
	return filepath.Join(p.cfg.Root, "pods", c.ID)
}

func (p *Pods) removeContainerFiles(c *Container) error {
	if err := mount.DetachBelow(p.containerDir(c)); err != nil {
		return fmt.Errorf("mounts of container %s: %w", c.ID, err)
	}
	return os.RemoveAll(p.containerDir(c))
}
