package nri

import (
	"context"
	"slices"

	"github.com/containerd/nri/pkg/api"
	"google.golang.org/protobuf/proto"

	"github.com/berthd/berth/base/errs"
)

// RunPod tells of a pod that is made: it has its namespaces and network, and nobody
// sees it yet. An error means that it must not run. Call done once it can be seen,
// or has been given up.
func (p *Plugins) RunPod(ctx context.Context, pod *api.PodSandbox) (done func(), err error) {
	if p == nil {
		return func() {}, nil
	}
	if err := p.ready(ctx); err != nil {
		return func() {}, err
	}
	err = p.each(func(pl *plugin) error {
		return pl.notify(ctx, api.Event_RUN_POD_SANDBOX, pod, nil, func(ctx context.Context) error {
			_, err := pl.api.RunPodSandbox(ctx, &api.RunPodSandboxRequest{Pod: pod})
			return err
		})
	}, func() { p.mu.pods[pod.GetId()] = pod })
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.mu.pods, pod.GetId())
	}, err
}

// StopPod tells of a pod whose containers have ended and whose network still is
// there.
func (p *Plugins) StopPod(ctx context.Context, pod *api.PodSandbox) error {
	return p.each(func(pl *plugin) error {
		return pl.notify(ctx, api.Event_STOP_POD_SANDBOX, pod, nil, func(ctx context.Context) error {
			_, err := pl.api.StopPodSandbox(ctx, &api.StopPodSandboxRequest{Pod: pod})
			return err
		})
	}, nil)
}

// RemovePod tells of a pod that is removed.
func (p *Plugins) RemovePod(ctx context.Context, pod *api.PodSandbox) error {
	return p.each(func(pl *plugin) error {
		return pl.notify(ctx, api.Event_REMOVE_POD_SANDBOX, pod, nil, func(ctx context.Context) error {
			_, err := pl.api.RemovePodSandbox(ctx, &api.RemovePodSandboxRequest{Pod: pod})
			return err
		})
	}, nil)
}

// UpdatePod tells of new resources of a pod before they are written down.
func (p *Plugins) UpdatePod(ctx context.Context, pod *api.PodSandbox, overhead, resources *api.LinuxResources) error {
	return p.each(func(pl *plugin) error {
		return pl.call(ctx, api.Event_UPDATE_POD_SANDBOX, func(ctx context.Context) error {
			_, err := pl.api.UpdatePodSandbox(ctx, &api.UpdatePodSandboxRequest{Pod: pod, OverheadLinuxResources: overhead, LinuxResources: resources})
			return err
		})
	}, nil)
}

// PostUpdatePod tells that they have been.
func (p *Plugins) PostUpdatePod(ctx context.Context, pod *api.PodSandbox) error {
	return p.each(func(pl *plugin) error {
		return pl.notify(ctx, api.Event_POST_UPDATE_POD_SANDBOX, pod, nil, func(ctx context.Context) error {
			_, err := pl.api.PostUpdatePodSandbox(ctx, &api.PostUpdatePodSandboxRequest{Pod: pod})
			return err
		})
	}, nil)
}

// Create asks the plugins about a container that is being made. view gives the
// container as it is with an adjustment (nil: without any), and an error for one
// that cannot be made. The result is all plugins' adjustments in one, or nil.
// Updates of other containers have been made when it returns. Call done once the
// container can be seen, or has been given up.
func (p *Plugins) Create(ctx context.Context, pod *api.PodSandbox, view func(*api.ContainerAdjustment) (*api.Container, error)) (adjust *api.ContainerAdjustment, done func(), err error) {
	if p == nil {
		return nil, func() {}, nil
	}
	if err := p.ready(ctx); err != nil {
		return nil, func() {}, err
	}
	pristine, err := view(nil)
	if err != nil {
		return nil, func() {}, err
	}
	id := pristine.GetId()
	m := newMerger(id)
	now := pristine
	var evict []*api.ContainerEviction
	var consulted []*plugin
	err = p.each(func(pl *plugin) error {
		var r *api.CreateContainerResponse
		answered := !pl.events.IsSet(api.Event_CREATE_CONTAINER)
		err := pl.call(ctx, api.Event_CREATE_CONTAINER, func(ctx context.Context) (err error) {
			r, err = pl.api.CreateContainer(ctx, &api.CreateContainerRequest{Pod: pod, Container: now})
			answered = err == nil
			return err
		})
		if err != nil || !answered {
			return err
		}
		consulted = append(consulted, pl)
		evict = append(evict, r.GetEvict()...)
		changed, err := m.adjust(r.GetAdjust(), pl.name())
		if err == nil {
			err = m.update(r.GetUpdate(), pl.name())
		}
		if err == nil && changed {
			now, err = view(m.adjusted)
		}
		if err != nil {
			return errs.New(errs.InvalidArgument, "NRI plugin %s: %w", pl.name(), err)
		}
		return nil
	}, func() { p.mu.containers[id] = now })
	done = func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.mu.containers, id)
	}
	if err == nil {
		err = p.validate(ctx, pod, pristine, m, consulted)
	}
	if err == nil {
		err = p.apply(ctx, "of CreateContainer", m.updates())
	}
	if err != nil {
		return nil, done, err
	}
	p.evict("of CreateContainer", evict)
	return m.result(), done, nil
}

// validate asks the plugins that only look, after our own rules.
func (p *Plugins) validate(ctx context.Context, pod *api.PodSandbox, c *api.Container, m *merger, consulted []*plugin) error {
	r := &api.ValidateContainerAdjustmentRequest{Pod: pod, Container: c, Adjust: m.result(), Update: m.updates(), Owners: m.owners}
	for _, pl := range consulted {
		r.Plugins = append(r.Plugins, &api.PluginInstance{Name: pl.base, Index: pl.index})
	}
	if err := p.cfg.Validator.check(r); err != nil {
		return err
	}
	p.mu.Lock()
	all := slices.Clone(p.mu.all)
	p.mu.Unlock()
	for _, pl := range all {
		var answer *api.ValidateContainerAdjustmentResponse
		err := pl.call(ctx, api.Event_VALIDATE_CONTAINER_ADJUSTMENT, func(ctx context.Context) (err error) {
			answer, err = pl.api.ValidateContainerAdjustment(ctx, r)
			return err
		})
		// A validator that does not answer has not agreed.
		if err == nil && answer == nil && pl.events.IsSet(api.Event_VALIDATE_CONTAINER_ADJUSTMENT) {
			err = errs.New(errs.Unavailable, "NRI plugin %s validates containers and does not answer", pl.name())
		}
		if err != nil {
			return err
		}
		if answer.GetReject() {
			return errs.New(errs.FailedPrecondition, "NRI plugin %s rejects what others have made of the container: %s", pl.name(), answer.GetReason())
		}
	}
	return nil
}

// PostCreate tells that a container is made.
func (p *Plugins) PostCreate(ctx context.Context, pod *api.PodSandbox, c *api.Container) error {
	return p.each(func(pl *plugin) error {
		return pl.notify(ctx, api.Event_POST_CREATE_CONTAINER, pod, c, func(ctx context.Context) error {
			_, err := pl.api.PostCreateContainer(ctx, &api.PostCreateContainerRequest{Pod: pod, Container: c})
			return err
		})
	}, nil)
}

// StartContainer asks before a container starts.
func (p *Plugins) StartContainer(ctx context.Context, pod *api.PodSandbox, c *api.Container) error {
	return p.each(func(pl *plugin) error {
		return pl.notify(ctx, api.Event_START_CONTAINER, pod, c, func(ctx context.Context) error {
			_, err := pl.api.StartContainer(ctx, &api.StartContainerRequest{Pod: pod, Container: c})
			return err
		})
	}, nil)
}

// PostStart tells that a container has started.
func (p *Plugins) PostStart(ctx context.Context, pod *api.PodSandbox, c *api.Container) error {
	return p.each(func(pl *plugin) error {
		return pl.notify(ctx, api.Event_POST_START_CONTAINER, pod, c, func(ctx context.Context) error {
			_, err := pl.api.PostStartContainer(ctx, &api.PostStartContainerRequest{Pod: pod, Container: c})
			return err
		})
	}, nil)
}

// UpdateContainer asks about new resources of a container and returns those that it
// shall have. Updates of other containers have been made when it returns.
func (p *Plugins) UpdateContainer(ctx context.Context, pod *api.PodSandbox, c *api.Container, r *api.LinuxResources) (*api.LinuxResources, error) {
	if p == nil {
		return r, nil
	}
	m := newMerger(c.GetId())
	wanted := proto.CloneOf(r)
	if wanted == nil {
		wanted = &api.LinuxResources{}
	}
	var evict []*api.ContainerEviction
	err := p.each(func(pl *plugin) error {
		var answer *api.UpdateContainerResponse
		err := pl.call(ctx, api.Event_UPDATE_CONTAINER, func(ctx context.Context) (err error) {
			answer, err = pl.api.UpdateContainer(ctx, &api.UpdateContainerRequest{Pod: pod, Container: c, LinuxResources: wanted})
			return err
		})
		if err == nil {
			err = m.update(answer.GetUpdate(), pl.name())
		}
		evict = append(evict, answer.GetEvict()...)
		if own := m.takeUpdate(c.GetId()); own != nil {
			replace(wanted.ProtoReflect(), own.GetLinux().GetResources().ProtoReflect())
		}
		return err
	}, nil)
	if err == nil {
		err = p.apply(ctx, "of UpdateContainer", m.updates())
	}
	if err != nil {
		return nil, err
	}
	p.evict("of UpdateContainer", evict)
	return wanted, nil
}

// PostUpdate tells that a container has its new resources.
func (p *Plugins) PostUpdate(ctx context.Context, pod *api.PodSandbox, c *api.Container) error {
	return p.each(func(pl *plugin) error {
		return pl.notify(ctx, api.Event_POST_UPDATE_CONTAINER, pod, c, func(ctx context.Context) error {
			_, err := pl.api.PostUpdateContainer(ctx, &api.PostUpdateContainerRequest{Pod: pod, Container: c})
			return err
		})
	}, nil)
}

// StopContainer tells that a container has ended or is about to be killed. What the
// plugins want changed in others is changed.
func (p *Plugins) StopContainer(ctx context.Context, pod *api.PodSandbox, c *api.Container) error {
	m := newMerger(c.GetId())
	err := p.each(func(pl *plugin) error {
		return pl.call(ctx, api.Event_STOP_CONTAINER, func(ctx context.Context) error {
			r, err := pl.api.StopContainer(ctx, &api.StopContainerRequest{Pod: pod, Container: c})
			if err != nil {
				return err
			}
			return m.update(r.GetUpdate(), pl.name())
		})
	}, nil)
	if p == nil || err != nil {
		return err
	}
	m.takeUpdate(c.GetId()) // there is nothing to change in what has ended
	return p.apply(ctx, "of StopContainer", m.updates())
}

// RemoveContainer tells of a container that is removed, or was never made.
func (p *Plugins) RemoveContainer(ctx context.Context, pod *api.PodSandbox, c *api.Container) error {
	return p.each(func(pl *plugin) error {
		return pl.notify(ctx, api.Event_REMOVE_CONTAINER, pod, c, func(ctx context.Context) error {
			_, err := pl.api.RemoveContainer(ctx, &api.RemoveContainerRequest{Pod: pod, Container: c})
			return err
		})
	}, nil)
}
