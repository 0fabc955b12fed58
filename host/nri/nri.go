// Package nri is the runtime's side of the Node Resource Interface: plugins connect
// to a socket or are started from a directory, learn of every pod and container,
// and change containers before they are made. It owns the socket, the connections
// and the programs it started; what a pod or container is it takes from Runtime and
// never decides itself.
//
// The protocol is that of github.com/containerd/nri (pkg/api): ttrpc both ways over
// one connection.
package nri

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containerd/nri/pkg/api"

	"github.com/berthd/berth/base/errs"
)

// Config says where plugins are and what is asked of them.
type Config struct {
	Name, Version string // of the runtime, as plugins see it
	Socket        string // "": nobody connects from outside
	PluginDir     string // of programs NN-NAME that are started; "": none
	ConfigDir     string // of NN-NAME.conf and NAME.conf, which those get
	// Register bounds a plugin's way to being registered, and its synchronization.
	Register time.Duration
	Request  time.Duration // bounds one request
	Validator
	Log *slog.Logger
}

// The defaults of the protocol.
const (
	DefaultSocket    = api.DefaultSocketPath
	DefaultPluginDir = "/opt/nri/plugins"
	DefaultConfigDir = "/etc/nri/conf.d"
	DefaultRegister  = api.DefaultPluginRegistrationTimeout
	DefaultRequest   = api.DefaultPluginRequestTimeout
)

// Runtime is who has the pods and containers.
type Runtime interface {
	// Snapshot lists all that clients can see; what is being made is not in it.
	Snapshot(ctx context.Context) ([]*api.PodSandbox, []*api.Container, error)
	// Update changes the resources of one container.
	Update(ctx context.Context, u *api.ContainerUpdate) error
	// Evict stops a container that a plugin does not want here.
	Evict(ctx context.Context, container, reason string) error
}

// Plugins are the plugins that are connected. A nil *Plugins has none, and its
// methods do nothing.
type Plugins struct {
	cfg  Config
	log  *slog.Logger
	life context.Context // of connections
	stop context.CancelFunc
	wg   sync.WaitGroup
	rt   Runtime
	lis  net.Listener
	// launched is closed when the programs of the plugin directory take part.
	launched chan struct{}

	mu struct {
		sync.Mutex
		closed bool
		all    []*plugin // in the order of being called
		conns  map[*plugin]bool
		// What its plugins have passed and clients do not see yet: a plugin that
		// joins now must be told of it, for no snapshot has it.
		pods       map[string]*api.PodSandbox
		containers map[string]*api.Container
	}
}

// New returns the plugins, none of them connected: see Start.
func New(ctx context.Context, cfg Config) *Plugins {
	if cfg.Register <= 0 {
		cfg.Register = DefaultRegister
	}
	if cfg.Request <= 0 {
		cfg.Request = DefaultRequest
	}
	p := &Plugins{cfg: cfg, log: cfg.Log.With("part", "nri"), launched: make(chan struct{})}
	p.life, p.stop = context.WithCancel(ctx)
	p.mu.conns, p.mu.pods, p.mu.containers = map[*plugin]bool{}, map[string]*api.PodSandbox{}, map[string]*api.Container{}
	return p
}

// Start listens and starts the programs of the plugin directory. What is made
// meanwhile waits for those. A plugin that does not work is logged and left out: if
// it is required, no container can be made.
func (p *Plugins) Start(rt Runtime) error {
	if p == nil {
		return nil
	}
	p.rt = rt
	p.wg.Add(1)
	// owner: Close cancels life and waits.
	go func() {
		defer p.wg.Done()
		defer close(p.launched)
		p.launchAll()
	}()
	if p.cfg.Socket == "" {
		return nil
	}
	l, err := listen(p.cfg.Socket)
	if err != nil {
		return fmt.Errorf("NRI socket: %w", err)
	}
	p.lis = l
	p.wg.Add(1)
	// owner: Close closes the listener and waits.
	go func() {
		defer p.wg.Done()
		p.accept(l)
	}()
	return nil
}

// listen makes the socket in place of one that nobody answers at. Who can connect
// can change every container: only root can.
func listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	if c, err := net.Dial("unix", path); err == nil {
		return nil, errors.Join(errs.New(errs.AlreadyExists, "%s belongs to another runtime that runs", path), c.Close())
	}
	if err := errs.Ignore(os.Remove(path), fs.ErrNotExist); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// ready waits until the programs of the plugin directory take part, or cannot.
func (p *Plugins) ready(ctx context.Context) error {
	select {
	case <-p.launched:
		return nil
	default:
	}
	select {
	case <-p.launched:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the plugins of %s are still being started: %w", p.cfg.PluginDir, context.Cause(ctx))
	}
}

// Any reports whether there is a plugin to tell something.
func (p *Plugins) Any() bool {
	if p == nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.mu.all) > 0
}

func (p *Plugins) accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				p.log.Error("no more plugins can connect", "error", err)
			}
			return
		}
		p.wg.Add(1)
		// owner: Close cancels life and waits. Each on its own: one that does not
		// register keeps nobody out.
		go func() {
			defer p.wg.Done()
			pl, err := p.connect(conn, program{})
			if err == nil {
				err = p.admit(pl)
			}
			if err != nil {
				p.log.Warn("a plugin cannot be used", "plugin", pl.name(), "error", err)
			}
		}()
	}
}

// Close says goodbye to all plugins and ends those that were started here.
func (p *Plugins) Close() error {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	if p.mu.closed {
		p.mu.Unlock()
		return nil
	}
	p.mu.closed = true
	var all []*plugin
	for pl := range p.mu.conns {
		all = append(all, pl)
	}
	p.mu.Unlock()
	var err error
	if p.lis != nil {
		err = p.lis.Close() // removes the socket too
	}
	for _, pl := range all {
		pl.goodbye()
	}
	p.stop()
	p.wg.Wait()
	return err
}

// Names lists the plugins that take part, in the order in which they are called.
func (p *Plugins) Names() []string {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for _, pl := range p.mu.all {
		out = append(out, pl.name())
	}
	return out
}

// admit lets a registered plugin take part. From the moment it is in the list,
// whoever makes something calls it, and waits until it is synchronized; what was
// made before is in what it is synchronized with. So it misses nothing, and what
// takes long in it keeps nobody from finishing what does not concern it.
//
//	in the list, busy ─> snapshot ─> Synchronize ─> not busy: requests come in
func (p *Plugins) admit(pl *plugin) error {
	pl.busy <- struct{}{}
	p.mu.Lock()
	at, _ := slices.BinarySearchFunc(p.mu.all, pl, func(a, b *plugin) int {
		if a.index <= b.index { // after those of the same index
			return -1
		}
		return 1
	})
	p.mu.all = slices.Insert(p.mu.all, at, pl)
	var pods []*api.PodSandbox
	for _, pod := range p.mu.pods {
		pods = append(pods, pod)
	}
	var containers []*api.Container
	for _, c := range p.mu.containers {
		containers = append(containers, c)
	}
	p.mu.Unlock()
	updates, err := p.synchronize(pl, pods, containers)
	<-pl.busy
	if err != nil {
		p.drop(pl)
		return err
	}
	p.log.Info("plugin takes part", "plugin", pl.name(), "pid", pl.pid)
	if err := p.apply(p.life, pl.name(), updates); err != nil {
		p.log.Warn("what a plugin wants changed could not be changed", "plugin", pl.name(), "error", err)
	}
	return nil
}

// synchronize tells a plugin of all there is.
func (p *Plugins) synchronize(pl *plugin, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	ctx, cancel := context.WithTimeout(p.life, max(p.cfg.Register, p.cfg.Request))
	defer cancel()
	seenPods, seen, err := p.rt.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	for _, pod := range seenPods {
		if !slices.ContainsFunc(pods, func(o *api.PodSandbox) bool { return o.Id == pod.Id }) {
			pods = append(pods, pod)
		}
	}
	for _, c := range seen {
		if !slices.ContainsFunc(containers, func(o *api.Container) bool { return o.Id == c.Id }) {
			containers = append(containers, c)
		}
	}
	return pl.synchronize(ctx, pods, containers)
}

// drop ends a plugin's part.
func (p *Plugins) drop(pl *plugin) {
	p.mu.Lock()
	p.mu.all = slices.DeleteFunc(p.mu.all, func(o *plugin) bool { return o == pl })
	p.mu.Unlock()
	pl.close()
}

// each calls fn for every plugin in order. One that joins meanwhile is called too:
// settled runs at a moment at which all have been called.
func (p *Plugins) each(fn func(*plugin) error, settled func()) error {
	if p == nil {
		return nil
	}
	called := map[*plugin]bool{}
	for {
		p.mu.Lock()
		i := slices.IndexFunc(p.mu.all, func(pl *plugin) bool { return !called[pl] })
		if i < 0 {
			if settled != nil {
				settled()
			}
			p.mu.Unlock()
			return nil
		}
		pl := p.mu.all[i]
		p.mu.Unlock()
		called[pl] = true
		if err := fn(pl); err != nil {
			return err
		}
	}
}

// applyTime bounds the changes that one request of a plugin asks for.
const applyTime = 10 * time.Second

// apply has the runtime change containers as a plugin wants it. The error tells of
// those whose failure the plugin does not ignore.
func (p *Plugins) apply(ctx context.Context, who string, updates []*api.ContainerUpdate) error {
	ctx, cancel := context.WithTimeout(ctx, applyTime)
	defer cancel()
	var all []error
	for _, u := range updates {
		err := p.rt.Update(ctx, u)
		if err == nil {
			continue
		}
		err = fmt.Errorf("plugin %s: update of container %s: %w", who, u.GetContainerId(), err)
		if u.GetIgnoreFailure() {
			p.log.Info("an update failed that may fail", "error", err)
			continue
		}
		all = append(all, err)
	}
	return errors.Join(all...)
}

// evict stops containers, in its own time.
func (p *Plugins) evict(who string, all []*api.ContainerEviction) {
	for _, e := range all {
		p.log.Warn("a plugin evicts a container", "plugin", who, "container", e.GetContainerId(), "reason", e.GetReason())
		p.wg.Add(1)
		// owner: Close cancels life and waits.
		go func() {
			defer p.wg.Done()
			if err := p.rt.Evict(p.life, e.GetContainerId(), e.GetReason()); err != nil {
				p.log.Error("a container could not be evicted", "plugin", who, "container", e.GetContainerId(), "error", err)
			}
		}()
	}
}
