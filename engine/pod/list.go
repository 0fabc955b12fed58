package pod

import (
	"slices"
	"strings"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/store"
)

// Pod returns a pod by its id or the beginning of one. A pod that is not made yet
// is not there.
func (p *Pods) Pod(ns, id string) (*Pod, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if pod := p.mu.pods[key{ns, id}]; pod != nil && pod.shown() {
		return pod, nil
	}
	return byPrefix(p.mu.pods, ns, id, "pod sandbox", (*Pod).shown)
}

// Container returns a container by its id or the beginning of one.
func (p *Pods) Container(ns, id string) (*Container, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if c := p.mu.containers[key{ns, id}]; c != nil && c.shown() {
		return c, nil
	}
	return byPrefix(p.mu.containers, ns, id, "container", (*Container).shown)
}

func byPrefix[T any](all map[key]*T, ns, prefix, what string, shown func(*T) bool) (*T, error) {
	var found *T
	n := 0
	for k, v := range all {
		if prefix != "" && k.ns == ns && strings.HasPrefix(k.id, prefix) && shown(v) {
			found = v
			n++
		}
	}
	switch n {
	case 0:
		return nil, errs.New(errs.NotFound, "%s %q: not found", what, prefix)
	case 1:
		return found, nil
	}
	return nil, errs.New(errs.InvalidArgument, "%s id %q is the beginning of %d ids: give more of it", what, prefix, n)
}

// Pods lists the pods of a namespace, newest first.
func (p *Pods) Pods(ns string) []*Pod {
	p.mu.RLock()
	defer p.mu.RUnlock()
	var out []*Pod
	for k, pod := range p.mu.pods {
		if k.ns == ns && pod.shown() {
			out = append(out, pod)
		}
	}
	slices.SortFunc(out, func(a, b *Pod) int { return b.CreatedAt.Compare(a.CreatedAt) })
	return out
}

// Containers lists the containers of a namespace, or of one pod, newest first.
func (p *Pods) Containers(ns, pod string) []*Container {
	p.mu.RLock()
	defer p.mu.RUnlock()
	var out []*Container
	for k, c := range p.mu.containers {
		if k.ns == ns && (pod == "" || c.Pod == pod) && c.shown() {
			out = append(out, c)
		}
	}
	slices.SortFunc(out, func(a, b *Container) int { return b.CreatedAt.Compare(a.CreatedAt) })
	return out
}

// shown reports whether CRI sees it: what is being made is not there yet.
func (pod *Pod) shown() bool { return pod.State != store.PodCreating && !pod.hidden }

func (c *Container) shown() bool { return c.State != store.ContainerCreating && !c.hidden }

// unhidePod shows a pod that could not be made and not be taken back.
func (p *Pods) unhidePod(k key) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if pod := p.mu.pods[k]; pod != nil {
		next := *pod
		next.hidden = false
		p.mu.pods[k] = &next
	}
}

func (p *Pods) unhideContainer(k key) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.mu.containers[k]; c != nil {
		next := *c
		next.hidden = false
		p.mu.containers[k] = &next
	}
}

// forgetPod takes a removed pod out of sight.
func (p *Pods) forgetPod(k key) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.mu.pods, k)
	p.rates.forget(k)
}

func (p *Pods) forgetContainer(k key) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.mu.containers, k)
	p.rates.forget(k)
	p.sizes.forget(k)
}
