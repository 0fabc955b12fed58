// Package daemon is berth's daemon: it builds all parts in one linear function,
// starts them, and stops them in the reverse order. It owns the sockets and the
// goroutines that serve them.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/berthd/berth/base/id"
	"github.com/berthd/berth/daemon/config"
	"github.com/berthd/berth/engine/event"
	"github.com/berthd/berth/engine/gc"
	"github.com/berthd/berth/engine/image"
	"github.com/berthd/berth/engine/image/registry"
	"github.com/berthd/berth/engine/pod"
	"github.com/berthd/berth/engine/restart"
	"github.com/berthd/berth/engine/sandbox"
	"github.com/berthd/berth/engine/task"
	"github.com/berthd/berth/host/cni"
	"github.com/berthd/berth/host/nri"
	"github.com/berthd/berth/host/shim"
	"github.com/berthd/berth/server/containerd"
	"github.com/berthd/berth/server/debug"
	"github.com/berthd/berth/server/stream"
	"github.com/berthd/berth/store"
	"github.com/berthd/berth/store/snapshot"
	"github.com/berthd/berth/store/snapshot/native"
	"github.com/berthd/berth/store/snapshot/overlay"
)

// parts is everything the daemon is made of, in the order of building.
type parts struct {
	waits    context.Context // of requests that wait for something, maybe for ever
	endWaits context.CancelCauseFunc
	rest     rest
	cfg      config.Config
	log      *slog.Logger
	exchange *event.Exchange
	store    *store.Store
	collect  *gc.Collector
	registry *registry.Client
	images   *image.Images
	launcher *shim.Launcher
	shims    *task.Shims
	boxes    *sandbox.Boxes
	tasks    *task.Tasks
	networks []*cni.Networks // everybody's, then those of runtime handlers
	pods     *pod.Pods
	nri      *nri.Plugins
	keeper   *restart.Keeper
	streams  *stream.Server
	requests *debug.Requests // nil: nobody can ask for them
	plugins  []containerd.Plugin
	warnings []containerd.Warning
	uuid     string
	systemd  systemd
	last     config.Config // as read last; reload's own

	// changed are called with a configuration that was read again, each for its part;
	// none of them may fail.
	changed []func(config.Config)
	live    []string // the keys that they take over, besides those of reload.go
}

// wire builds the daemon. Each part names the plugin that clients of the API see
// for it.
func wire(ctx context.Context, cfg config.Config, log *slog.Logger) (*parts, error) {
	p := &parts{cfg: cfg, last: cfg, log: log}
	p.waits, p.endWaits = context.WithCancelCause(context.WithoutCancel(ctx))
	for _, d := range []string{cfg.Root, cfg.State} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return nil, err
		}
	}
	for _, d := range cfg.Deprecations {
		p.warnings = append(p.warnings, containerd.Warning{ID: d.ID, Message: d.Message, Last: time.Now()})
	}
	// `ctr install` puts programs there; shims and runtimes inherit the daemon's PATH.
	p.plugin("internal.v1", "opt").Exports = map[string]string{"path": cfg.Plugins.Opt.Path}
	p.exchange = event.New()
	p.plugin("event.v1", "exchange")

	drivers, err := p.drivers()
	if err != nil {
		return nil, err
	}
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	p.store, err = store.Open(ctx, store.Config{
		Root: cfg.Root, Drivers: drivers, BootID: boot, Publish: p.publish(log), Log: log,
		Isolated: cfg.Plugins.Metadata.Sharing == "isolated",
	})
	if err != nil {
		return nil, err
	}
	p.plugin("content.v1", "content").Exports = map[string]string{"root": filepath.Join(cfg.Root, "content")}
	p.plugin("metadata.v1", "bolt")
	p.plugin("lease.v1", "manager")

	p.collect = gc.New(gc.Config{
		Pause: cfg.Plugins.GC.PauseThreshold, Deletions: cfg.Plugins.GC.DeletionThreshold, Mutations: cfg.Plugins.GC.MutationThreshold,
		Delay: cfg.Plugins.GC.ScheduleDelay.Std(), Startup: cfg.Plugins.GC.StartupDelay.Std(), Interval: cfg.Berth.GCInterval.Std(),
	}, p.store, log)
	p.plugin("gc.v1", "scheduler")

	dirs, credentials, err := registries(cfg)
	if err != nil {
		return nil, errors.Join(err, p.store.Close())
	}
	p.registry = registry.New(registry.Config{
		HostsDirs: dirs, CredentialFiles: credentials, UserAgent: "berth/" + Version, Header: cfg.Plugins.Images.Registry.Headers, Logger: log,
	})
	verifier := cfg.Plugins.Verifier
	p.images = image.New(image.Config{
		Store: p.store, Registry: p.registry, GC: p.collect, Snapshotter: cfg.Plugins.Images.Snapshotter, Log: log,
		Downloads: cfg.Downloads(), Uploads: cfg.Plugins.Transfer.Uploads,
		Verifiers: image.Verifiers{Dir: verifier.BinDir, Most: verifier.Most, Limit: verifier.Timeout.Std()},
	})
	p.plugin("transfer.v1", "local")
	p.plugin("image-verifier.v1", "bindir")
	p.plugin("differ.v1", "walking")
	p.plugin("streaming.v1", "manager")
	p.plugin("warning.v1", "deprecations")

	p.launcher, err = shim.NewLauncher(shim.Config{
		GRPCAddress: cfg.Plugins.GRPC.Address, TTRPCAddress: cfg.TTRPCAddress(), SocketDir: socketDir(cfg), OwnBinary: cfg.Berth.Shim,
		Env: cfg.Plugins.Shim.Env, Debug: cfg.Debug.Level == "debug" || cfg.Debug.Level == "trace", Version: Version, Log: log,
	})
	if err != nil {
		return nil, errors.Join(err, p.store.Close())
	}
	p.shims = task.NewShims()
	p.plugin("shim.v1", "manager")
	p.boxes = sandbox.NewBoxes(ctx, sandbox.BoxConfig{State: cfg.State, Store: p.store, Exchange: p.exchange, Launcher: p.launcher, Shims: p.shims, Log: log})
	p.plugin("sandbox.store.v1", "local")
	p.plugin("sandbox.controller.v1", sandbox.Controller)
	p.tasks = task.New(ctx, task.Config{
		State: cfg.State, Work: cfg.Root, Store: p.store, Exchange: p.exchange, Launcher: p.launcher, Shims: p.shims, Sandbox: p.boxes.Shim, Log: log,
		ConnectTime: cfg.Timeouts[config.TimeoutShimLoad].Std(), StateTime: cfg.Timeouts[config.TimeoutTaskState].Std(),
	})
	p.plugin("runtime.v2", "task").Exports = map[string]string{"root": cfg.Root, "state": cfg.State, "log-uri-schemes": "fifo,binary,binary-v2,file"}
	if err := p.wirePods(ctx, p.launcher); err != nil {
		return nil, errors.Join(err, p.close())
	}

	if cg := p.plugin("monitor.task.v1", "cgroups"); cfg.Plugins.Cgroups.Off {
		cg.Skipped = "no_prometheus is set"
	}
	p.keep()
	p.services()
	p.proxies()
	if err := p.required(); err != nil {
		return nil, errors.Join(err, p.close())
	}
	if p.uuid, err = p.store.Meta(ctx, "uuid", uuid); err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

// keep builds what keeps containers running.
func (p *parts) keep() {
	kept := restart.Config{
		Store: p.store, Tasks: p.tasks, Exchange: p.exchange, GC: p.collect, Dirs: filepath.Join(p.cfg.Root, "containers"),
		Interval: p.cfg.Plugins.Restart.Interval.Std(), Log: p.log,
	}
	if p.pods != nil {
		kept.RemovePod = p.pods.Remove
	}
	if keeper := p.plugin("monitor.container.v1", "restart"); p.cfg.Off("io.containerd.monitor.container.v1.restart") {
		keeper.Skipped = "disabled by the configuration"
	} else {
		keeper.Capabilities = restart.Policies
		p.keeper = restart.New(kept)
	}
}

// bootID names the running kernel.
func bootID() (string, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the boot id: %w", err)
	}
	return strings.TrimSpace(string(boot)), nil
}

// publish hands on what transactions tell, and counts changes for the collector,
// which is made after the store.
func (p *parts) publish(log *slog.Logger) func([]store.Event) {
	tell := p.exchange.FromStore(log)
	return func(all []store.Event) {
		tell(all)
		if c := p.collect; c != nil {
			c.Changed(len(all))
		}
	}
}

// socketDir is where shims put their sockets: below the state, unless that is so
// deep that a socket's path would be too long (sun_path of unix(7), 108 bytes with
// the final zero). The names are hashes that tell daemons apart.
func socketDir(cfg config.Config) string {
	const hash = 64
	if dir := cfg.Plugins.Shim.SocketDir; dir != "" {
		return dir
	}
	state := cfg.State
	if dir := filepath.Join(state, "s"); len(dir)+1+hash < 108 {
		return dir
	}
	return filepath.Join(config.DefaultState, "s")
}

// drivers builds the snapshot drivers; one that cannot work here is shown as
// skipped, with the reason.
func (p *parts) drivers() (map[string]snapshot.Driver, error) {
	out := map[string]snapshot.Driver{}
	add := func(name string, d snapshot.Driver, err error) {
		pl := p.plugin("snapshotter.v1", name)
		if err != nil {
			pl.Skipped = err.Error()
			p.log.Warn("snapshotter is not available", "name", name, "error", err)
			return
		}
		out[name] = d
		pl.Exports = map[string]string{"root": d.Root()}
		for _, c := range d.Capabilities() {
			pl.Capabilities = append(pl.Capabilities, string(c))
		}
	}
	set := p.cfg.Plugins
	if !p.cfg.Off("io.containerd.snapshotter.v1.overlayfs") {
		o, err := overlay.New(or(set.Overlay.Root, filepath.Join(p.cfg.Root, "overlayfs")), set.Overlay.MountOptions...)
		add("overlayfs", o, err)
	}
	if !p.cfg.Off("io.containerd.snapshotter.v1.native") {
		n, err := native.New(or(set.Native.Root, filepath.Join(p.cfg.Root, "native")))
		add("native", n, err)
	}
	if len(out) == 0 {
		return nil, errors.New("no snapshotter works here: see the warnings above")
	}
	if name := set.Images.Snapshotter; out[name] == nil {
		p.log.Error("the default snapshotter is not there: pulls that name none will fail", "name", name, "setting", "io.containerd.cri.v1.images.snapshotter")
	}
	return out, nil
}

func or(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

func (p *parts) close() error {
	p.endWaits(nil)
	var all []error
	if p.streams != nil { // first: its sessions use all the rest
		all = append(all, p.streams.Close())
	}
	all = append(all, p.nri.Close())
	if p.pods != nil {
		all = append(all, p.pods.Close())
	}
	if p.tasks != nil {
		all = append(all, p.shims.Close(), p.boxes.Close(), p.tasks.Close())
	}
	return errors.Join(append(all, p.store.Close())...)
}

// uuid makes a random UUID (RFC 9562, version 4).
func uuid() string {
	b := []byte(id.New(16))
	b[12] = '4'
	b[16] = "89ab"[b[16]%4]
	return fmt.Sprintf("%s-%s-%s-%s-%s", b[:8], b[8:12], b[12:16], b[16:20], b[20:])
}
