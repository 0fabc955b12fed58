package nri

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"slices"
	"sync"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/net/multiplex"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/berthd/berth/base/errs"
)

// plugin is one connection.
//
//	connected ─RegisterPlugin─> registered ─Configure─> configured ─admit─> takes part ─> closed
type plugin struct {
	program
	pid int
	all *Plugins

	trunk      multiplex.Mux
	client     *ttrpc.Client
	server     *ttrpc.Server
	api        api.PluginService
	registered chan *api.RegisterPluginRequest
	gone       chan struct{} // closed when the connection is
	closing    sync.Once

	events api.EventMask
	policy *api.FailurePolicy
	// busy is held while a request is with the plugin: plugins rely on getting one
	// after the other.
	busy chan struct{}
	old  sync.Map // api.Event -> true: it knows the event only as a StateChange
}

// program is what is known of a plugin before it says anything: all of it for one
// that was started here, nothing for one that connects.
type program struct {
	base, index string // NAME and NN
	config      string // what its file says
	cmd         *exec.Cmd
	ended       chan struct{} // closed when cmd has ended
}

func (pl *plugin) name() string {
	if pl.base == "" {
		return "(not registered)"
	}
	return pl.index + "-" + pl.base
}

// connect serves a connection and brings the plugin at its other end to the point
// where it can take part.
func (p *Plugins) connect(conn net.Conn, known program) (*plugin, error) {
	pl := &plugin{program: known, all: p}
	pl.registered, pl.gone, pl.busy = make(chan *api.RegisterPluginRequest, 1), make(chan struct{}), make(chan struct{}, 1)
	if uc, ok := conn.(*net.UnixConn); ok {
		pl.pid = peer(uc)
	}
	pl.trunk = multiplex.Multiplex(conn, multiplex.WithBlockedRead())
	if err := pl.serve(); err != nil {
		pl.endProgram()
		return pl, errors.Join(err, pl.trunk.Close())
	}
	p.mu.Lock()
	if p.mu.closed {
		p.mu.Unlock()
		pl.close()
		return pl, errs.New(errs.Unavailable, "the daemon ends")
	}
	p.mu.conns[pl] = true
	p.mu.Unlock()
	if err := pl.introduce(); err != nil {
		pl.close()
		return pl, err
	}
	return pl, nil
}

// serve opens both directions; nothing is read before all is in place.
func (pl *plugin) serve() error {
	out, err := pl.trunk.Open(multiplex.PluginServiceConn)
	if err != nil {
		return err
	}
	in, err := pl.trunk.Listen(multiplex.RuntimeServiceConn)
	if err != nil {
		return err
	}
	if pl.server, err = ttrpc.NewServer(); err != nil {
		return err
	}
	api.RegisterRuntimeService(pl.server, (*door)(pl))
	pl.client = ttrpc.NewClient(out, ttrpc.WithOnClose(func() { close(pl.gone) }))
	pl.api = api.NewPluginClient(pl.client)
	pl.all.wg.Add(2)
	// owner: Plugins.Close closes every connection and waits.
	go func() {
		defer pl.all.wg.Done()
		if err := pl.server.Serve(pl.all.life, in); err != nil && !errors.Is(err, ttrpc.ErrServerClosed) {
			pl.all.log.Debug("connection of a plugin ends", "plugin", pl.name(), "error", err)
		}
		pl.all.drop(pl)
	}()
	// owner: as above.
	go func() {
		defer pl.all.wg.Done()
		<-pl.gone
		pl.all.drop(pl)
	}()
	pl.trunk.Unblock()
	return nil
}

// introduce waits for the plugin to register and configures it.
func (pl *plugin) introduce() error {
	t := time.NewTimer(pl.all.cfg.Register)
	defer t.Stop()
	select {
	case r := <-pl.registered:
		if err := checkRegistration(pl, r); err != nil {
			return err
		}
	case <-pl.gone:
		return errs.New(errs.Unavailable, "it closed the connection before it registered")
	case <-pl.all.life.Done():
		return context.Cause(pl.all.life)
	case <-t.C:
		return errs.New(errs.Unavailable, "it did not register within %s", pl.all.cfg.Register)
	}
	ctx, cancel := context.WithTimeout(pl.all.life, pl.all.cfg.Request)
	defer cancel()
	r, err := pl.api.Configure(ctx, &api.ConfigureRequest{
		Config: pl.config, RuntimeName: pl.all.cfg.Name, RuntimeVersion: pl.all.cfg.Version, NRIVersion: protocolVersion,
		RegistrationTimeout: pl.all.cfg.Register.Milliseconds(), RequestTimeout: pl.all.cfg.Request.Milliseconds(),
	})
	if err != nil {
		return fmt.Errorf("configure: %w", err)
	}
	pl.events, pl.policy = api.EventMask(r.GetEvents()), r.GetFailurePolicy()
	if extra := pl.events &^ api.ValidEvents; extra != 0 {
		return errs.New(errs.InvalidArgument, "it subscribes to events that are not known: %#x", int32(extra))
	}
	if pl.events == 0 {
		pl.events = api.ValidEvents
	}
	return nil
}

// protocolVersion is the version of github.com/containerd/nri whose messages these
// are.
const protocolVersion = "v0.12.5"

// door is what a plugin may ask of us.
type door plugin

// RegisterPlugin is the first call of a plugin.
func (d *door) RegisterPlugin(_ context.Context, r *api.RegisterPluginRequest) (*api.Empty, error) {
	select {
	case d.registered <- r:
		return &api.Empty{}, nil
	default:
		return nil, status.Error(codes.FailedPrecondition, "the plugin is registered already")
	}
}

// checkRegistration takes a plugin's name; one that was started here has it from
// its file.
func checkRegistration(pl *plugin, r *api.RegisterPluginRequest) error {
	if pl.cmd != nil {
		return nil
	}
	if err := errors.Join(api.CheckPluginName(r.GetPluginName()), api.CheckPluginIndex(r.GetPluginIdx())); err != nil {
		return errs.New(errs.InvalidArgument, "it registers as %q %q: %w", r.GetPluginIdx(), r.GetPluginName(), err)
	}
	pl.base, pl.index = r.GetPluginName(), r.GetPluginIdx()
	return nil
}

// UpdateContainers changes and evicts containers because a plugin wants it, not
// because something happens.
func (d *door) UpdateContainers(ctx context.Context, r *api.UpdateContainersRequest) (*api.UpdateContainersResponse, error) {
	pl := (*plugin)(d)
	if pl.all.rt == nil || !pl.all.takesPart(pl) {
		return nil, status.Error(codes.FailedPrecondition, "the plugin does not take part yet")
	}
	ctx, cancel := context.WithTimeout(ctx, applyTime)
	defer cancel()
	out := &api.UpdateContainersResponse{}
	for _, u := range r.GetUpdate() {
		if err := pl.all.rt.Update(ctx, u); err != nil {
			pl.all.log.Warn("what a plugin wants changed could not be changed", "plugin", pl.name(), "container", u.GetContainerId(), "error", err)
			out.Failed = append(out.Failed, u)
		}
	}
	pl.all.evict(pl.name(), r.GetEvict())
	return out, nil
}

func (p *Plugins) takesPart(pl *plugin) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Contains(p.mu.all, pl)
}

// close ends the connection; whatever waits on it gets an error.
func (pl *plugin) close() {
	pl.closing.Do(func() {
		pl.all.mu.Lock()
		delete(pl.all.mu.conns, pl)
		pl.all.mu.Unlock()
		err := errors.Join(pl.client.Close(), pl.server.Close(), pl.trunk.Close())
		if err != nil {
			pl.all.log.Debug("close connection of a plugin", "plugin", pl.name(), "error", err)
		}
		pl.endProgram()
	})
}

// goodbye tells the plugin that the runtime ends.
func (pl *plugin) goodbye() {
	ctx, cancel := context.WithTimeout(pl.all.life, min(pl.all.cfg.Request, endTime))
	defer cancel()
	if _, err := pl.api.Shutdown(ctx, &api.Empty{}); err != nil {
		pl.all.log.Debug("a plugin does not say goodbye", "plugin", pl.name(), "error", err)
	}
	pl.all.drop(pl)
}

// peer is the process at the other end of a socket, or 0.
func peer(c *net.UnixConn) int {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	pid := 0
	if err := raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	}); err != nil {
		return 0
	}
	return pid
}

// maxSync is how many bytes of pods and containers go into one message; ttrpc takes
// 4 MiB.
const maxSync = 2 << 20

// synchronize sends everything in as many messages as it needs. A plugin says with
// each answer but the last that it understands that more is coming.
func (pl *plugin) synchronize(ctx context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	for {
		r := &api.SynchronizeRequest{}
		size := 0
		for len(pods) > 0 && size < maxSync {
			size += proto.Size(pods[0])
			r.Pods, pods = append(r.Pods, pods[0]), pods[1:]
		}
		for len(containers) > 0 && size < maxSync {
			size += proto.Size(containers[0])
			r.Containers, containers = append(r.Containers, containers[0]), containers[1:]
		}
		r.More = len(pods)+len(containers) > 0
		answer, err := pl.api.Synchronize(ctx, r)
		if err != nil {
			return nil, fmt.Errorf("synchronize: %w", err)
		}
		if !r.More {
			return answer.GetUpdate(), nil
		}
		if !answer.GetMore() {
			return nil, errs.New(errs.FailedPrecondition, "synchronize: there is more than fits one message, and the plugin does not take several")
		}
	}
}

// call sends one request, if the plugin wants to know of the event. What a plugin
// says is an error of the request; a plugin that does not answer is left out from
// now on, unless it asks for something else or is required.
func (pl *plugin) call(ctx context.Context, e api.Event, send func(context.Context) error) error {
	if !pl.events.IsSet(e) {
		return nil
	}
	select {
	case pl.busy <- struct{}{}:
		defer func() { <-pl.busy }()
	case <-ctx.Done():
		return fmt.Errorf("NRI plugin %s: another request keeps it busy: %w", pl.name(), context.Cause(ctx))
	}
	rctx, cancel := context.WithTimeout(ctx, pl.all.cfg.Request)
	defer cancel()
	limit, bounded := ctx.Deadline()
	callers := bounded && limit.Before(time.Now().Add(pl.all.cfg.Request)) // whose time is over first
	err := send(rctx)
	if err == nil {
		return nil
	}
	// The plugin's end of the connection has the same clock and may be first.
	late := rctx.Err() != nil || errors.Is(err, context.DeadlineExceeded) || status.Code(err) == codes.DeadlineExceeded
	lost := errors.Is(err, ttrpc.ErrClosed) || errors.Is(err, ttrpc.ErrServerClosed) || errors.Is(err, ttrpc.ErrProtocol) || errors.Is(err, ttrpc.ErrStreamClosed)
	if ctx.Err() != nil || late && callers || !late && !lost {
		return errs.New(errs.FailedPrecondition, "NRI plugin %s, %s: %w", pl.name(), e.PrettyName(), err)
	}
	if late {
		err = errs.New(errs.Unavailable, "no answer within %s", pl.all.cfg.Request)
	}
	if !late || !pl.policy.GetKeepConnected() {
		pl.all.log.Error("a plugin does not answer and is left out", "plugin", pl.name(), "event", e.PrettyName(), "error", err)
		pl.all.drop(pl)
	}
	if pl.policy.GetFailRequest() || pl.all.cfg.requires(pl.base) {
		return errs.New(errs.Unavailable, "NRI plugin %s, %s: %w", pl.name(), e.PrettyName(), err)
	}
	pl.all.log.Warn("a request goes on without a plugin", "plugin", pl.name(), "event", e.PrettyName(), "error", err)
	return nil
}

// notify is call for events that older plugins know only as a StateChange.
func (pl *plugin) notify(ctx context.Context, e api.Event, pod *api.PodSandbox, c *api.Container, send func(context.Context) error) error {
	change := func(ctx context.Context) error {
		_, err := pl.api.StateChange(ctx, &api.StateChangeEvent{Event: e, Pod: pod, Container: c})
		return err
	}
	return pl.call(ctx, e, func(ctx context.Context) error {
		if _, old := pl.old.Load(e); old {
			return change(ctx)
		}
		err := send(ctx)
		if status.Code(err) == codes.Unimplemented {
			pl.old.Store(e, true)
			return change(ctx)
		}
		return err
	})
}
