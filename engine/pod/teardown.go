package pod

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/failpoint"
	"github.com/berthd/berth/store"
)

// Stop ends everything that runs in a pod and gives back its addresses. What is
// stopped already, or not there at all, is no error.
func (p *Pods) Stop(ctx context.Context, ns, id string) error {
	pod, err := p.Pod(ns, id)
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	h, err := p.hold(ctx, "pod", ns, pod.ID, "stop")
	if err != nil {
		return err
	}
	defer h.release()
	if pod, err = p.Pod(ns, pod.ID); err != nil {
		return errs.Ignore(err, errs.NotFound)
	}
	return p.stopPod(ctx, pod)
}

// stopPod writes down that the pod is over, then makes it so. The caller holds the
// pod.
func (p *Pods) stopPod(ctx context.Context, pod *Pod) error {
	if pod.State == store.PodReady {
		next := *pod
		next.State = store.PodStopped
		var err error
		if pod, err = p.putPod(ctx, next); err != nil {
			return err
		}
	}
	failpoint.Here("pod.stop.written")
	p.stageOf(pod, "ending its containers")
	if err := p.stopContainers(ctx, pod); err != nil {
		return fmt.Errorf("stop pod %s: %w", pod.ID, err)
	}
	if pod.Stopped {
		return nil
	}
	p.tellStopped(ctx, pod)
	if err := p.takeDown(ctx, pod); err != nil {
		return fmt.Errorf("stop pod %s: %w", pod.ID, err)
	}
	next := *pod
	next.Stopped, next.InfraPid = true, 0
	pod, err := p.putPod(ctx, next)
	if err == nil {
		p.tellPod(cri.ContainerEventType_CONTAINER_STOPPED_EVENT, pod)
	}
	return err
}

// stopContainers kills all that run in a pod, all at once.
func (p *Pods) stopContainers(ctx context.Context, pod *Pod) error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var all []error
	for _, c := range p.Containers(pod.Namespace, pod.ID) {
		wg.Add(1)
		// owner: this function waits for it below.
		go func() {
			defer wg.Done()
			err := p.StopContainer(ctx, pod.Namespace, c.ID, 0)
			mu.Lock()
			defer mu.Unlock()
			all = append(all, err)
		}()
	}
	wg.Wait()
	return errors.Join(all...)
}

// takeDown ends what holds the pod together: infrastructure process, network,
// namespaces. Each step is tried whatever became of the others.
func (p *Pods) takeDown(ctx context.Context, pod *Pod) error {
	var err error
	p.stageOf(pod, "ending its infrastructure process")
	if pod.Infra {
		err = p.cfg.Sandbox.End(ctx, p.scope(pod.Namespace), pod.ID)
	}
	failpoint.Here("pod.stop.infra")
	p.stageOf(pod, "detaching it from its networks")
	err = errors.Join(err, p.detach(ctx, pod))
	failpoint.Here("pod.stop.detached")
	p.stageOf(pod, "removing its namespaces")
	return errors.Join(err, p.cfg.Sandbox.Unpin(ctx, pod.ID))
}

// Remove takes a pod away with its containers. What is not there is no error.
func (p *Pods) Remove(ctx context.Context, ns, id string) error {
	pod, err := p.Pod(ns, id)
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return p.removePod(ctx, key{ns, pod.ID})
}

// known returns a pod by its id, also one that CRI does not see; nil if there is none.
func (p *Pods) known(k key) *Pod {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.mu.pods[k]
}

// removePod takes a pod away, also one that CRI does not see. One that somebody else
// is taking away is waited for.
func (p *Pods) removePod(ctx context.Context, k key) error {
	h, err := p.hold(ctx, "pod", k.ns, k.id, "remove")
	if err != nil {
		return err
	}
	defer h.release()
	pod := p.known(k)
	if pod == nil {
		return nil
	}
	seen := pod.shown()
	if seen && !pod.Stopped && p.cfg.NRI.Any() {
		if err := p.stopPod(ctx, pod); err != nil { // so that plugins are told in order
			p.log.Warn("a pod that is removed does not stop", "pod", pod.ID, "error", err)
		}
		pod = p.known(k)
	}
	view := p.nriPod(pod)
	if err := p.teardown(ctx, pod); err != nil {
		return fmt.Errorf("remove pod %s: %w", pod.ID, err)
	}
	if !seen {
		return nil
	}
	p.podGone(ctx, view)
	p.tellPod(cri.ContainerEventType_CONTAINER_DELETED_EVENT, pod)
	return nil
}

// teardown is the one way down for a pod: for a failed run, for remove, and at
// start for what an earlier daemon left. It goes through all steps, and the row
// stays in state removing while anything remains. The caller holds the pod.
func (p *Pods) teardown(ctx context.Context, pod *Pod) error {
	next := *pod
	next.State = store.PodRemoving
	pod, err := p.putPod(ctx, next)
	if err != nil {
		return err
	}
	failpoint.Here("pod.remove.written")
	var all []error
	for _, c := range p.allContainers(pod.Namespace, pod.ID) {
		all = append(all, p.removeLocked(ctx, c))
	}
	all = append(all, p.takeDown(ctx, pod), p.removeFiles(pod.ID))
	if err := errors.Join(all...); err != nil {
		return err
	}
	failpoint.Here("pod.remove.files")
	err = p.scope(pod.Namespace).Update(ctx, func(tx *store.Tx) error {
		return errors.Join(
			errs.Ignore(tx.DeleteLease(pod.ID), errs.NotFound),
			errs.Ignore(tx.DeleteSandbox(pod.ID), errs.NotFound),
			tx.DeletePod(pod.ID))
	})
	if err == nil {
		p.forgetPod(key{pod.Namespace, pod.ID})
	}
	return err
}

// removeLocked removes a container that nobody else changes meanwhile; one that is
// being made is waited for.
func (p *Pods) removeLocked(ctx context.Context, c *Container) error {
	h, err := p.hold(ctx, "container", c.Namespace, c.ID, "remove")
	if err != nil {
		return err
	}
	defer h.release()
	p.mu.RLock()
	now := p.mu.containers[key{c.Namespace, c.ID}]
	p.mu.RUnlock()
	if now == nil {
		return nil
	}
	return p.removeContainer(ctx, now)
}

// allContainers lists a pod's containers, half-made ones too.
func (p *Pods) allContainers(ns, pod string) []*Container {
	p.mu.RLock()
	defer p.mu.RUnlock()
	var out []*Container
	for k, c := range p.mu.containers {
		if k.ns == ns && c.Pod == pod {
			out = append(out, c)
		}
	}
	return out
}

// stopTime bounds the wait for a process that was killed.
const stopTime = 30 * time.Second
