package daemon

import (
	"cmp"
	"context"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go/features"
	"google.golang.org/grpc"
	criapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/daemon/config"
	"github.com/berthd/berth/engine/event"
	"github.com/berthd/berth/engine/pod"
	"github.com/berthd/berth/engine/podspec"
	"github.com/berthd/berth/engine/sandbox"
	"github.com/berthd/berth/host/blockio"
	"github.com/berthd/berth/host/cni"
	"github.com/berthd/berth/host/shim"
	"github.com/berthd/berth/server/cri"
)

// wirePods builds what a kubelet needs on top of tasks and images.
func (p *parts) wirePods(ctx context.Context, launcher *shim.Launcher) error {
	if p.cfg.Off(criPlugin) {
		return nil
	}
	cfg := p.cfg.Plugins.Runtime
	host, err := podspec.Probe(p.log)
	if err != nil {
		return err
	}
	if err := p.classes(&host); err != nil {
		return err
	}
	own, err := launcher.Own()
	if err != nil {
		return err
	}
	nets := ""
	if !cfg.NetNSInState {
		nets = "/var/run/netns"
	}
	box := sandbox.New(sandbox.Config{State: p.cfg.State, NetNS: nets, Root: p.cfg.Root, Shim: own, Store: p.store, Tasks: p.tasks})
	owner := cni.NewOwner(p.cfg.Root)
	network := func(dir string, most int) *cni.Networks {
		n := p.network(cni.Config{Dir: dir, Most: most, Owner: owner, NetNS: box.NetNS})
		p.networks = append(p.networks, n)
		return n
	}
	network(cfg.CNI.ConfDir, cfg.CNI.Max)
	p.plugin("sandbox.controller.v1", "podsandbox")
	p.nri = p.nriPlugins(ctx)
	handlers := map[string]*pod.Handler{}
	for name, r := range cfg.Containerd.Runtimes {
		handlers[name] = p.handler(p.cfg, name, r)
		if dir := r.CNIConfDir; dir != "" && handlers[name].Broken == nil {
			handlers[name].Networks = network(dir, cmp.Or(r.CNIMax, cfg.CNI.Max))
		}
	}
	handlers[""] = handlers[cfg.Containerd.Default]
	p.changed = append(p.changed, p.newRuntimes)
	p.live = append(p.live, `plugins."io.containerd.cri.v1.runtime".containerd`)
	p.pods = pod.New(ctx, pod.Config{
		Root: p.cfg.Root, State: p.cfg.State, GC: p.collect, Store: p.store, Tasks: p.tasks, Sandbox: box, Images: p.images, Exchange: p.exchange,
		NRI: p.nri, Networks: p.networks[0], CNIDir: cfg.CNI.ConfDir, CNITemplate: cfg.CNI.Template, Owner: owner, Host: host, Handlers: handlers,
		Warnings: p.podWarnings(), MaxLine: max(0, cfg.MaxLogLine), ExecDrain: cfg.DrainExecSync.Std(), NoCheckpoints: !cfg.CRIU, IgnoreVolumes: cfg.IgnoreVolumes, Prefer: cni.IPPreference(cfg.CNI.IPPref), Log: p.log,
	})
	p.plugin("cri.v1", "images")
	p.plugin("cri.v1", "runtime")
	p.plugin("grpc.v1", "cri")
	p.streams, err = p.newStreams(ctx)
	return err
}

// classes are those that containers can be put into by annotations.
func (p *parts) classes(host *podspec.Host) error {
	cfg := p.cfg.Plugins.Tasks
	if cfg.RDT != "" {
		p.log.Warn("rdt_config_file is not read: classes of RDT are the groups that somebody makes in /sys/fs/resctrl", "file", cfg.RDT)
	}
	if cfg.BlockIO == "" {
		return nil
	}
	all, err := blockio.Load(cfg.BlockIO)
	if err != nil {
		return err
	}
	host.BlockIO = all.Class
	return nil
}

func (p *parts) network(c cni.Config) *cni.Networks {
	cfg := p.cfg.Plugins.Runtime.CNI
	bins := cfg.BinDirs
	if cfg.BinDir != "" {
		bins = []string{cfg.BinDir}
	}
	c.BinDirs, c.Builtin, c.Log = bins, p.cfg.Berth.BuiltinCNI, p.log
	return cni.New(c)
}

// specSettings is what the configuration says of specs, for all handlers.
func specSettings(c config.CRIRuntime) podspec.Settings {
	s := podspec.DefaultSettings()
	s.UnsetSeccomp, s.DisableAppArmor, s.SELinux, s.SELinuxCategories = c.UnsetSeccomp, c.NoAppArmor, c.SELinux, c.SELinuxCategories
	s.RestrictOOMScoreAdj, s.DisableProcMount = c.RestrictOOMScore, c.NoProcMount
	s.TolerateNoHugetlb, s.DisableHugetlb, s.DeviceOwnership = c.TolerateHugetlb, c.NoHugetlb, c.DeviceOwnership
	s.UnprivilegedPorts, s.UnprivilegedICMP, s.CDIDirs = c.UnprivilegedPorts, c.UnprivilegedICMP, c.CDISpecDirs
	s.IgnoreRDTDisabled, s.IgnoreBlockIODisabled = c.Containerd.IgnoreRDT, c.Containerd.IgnoreBlockIO
	return s
}

// ownKernel reports a runtime that needs a container to start a pod's kernel in: any
// foreign shim may, and gVisor's runsc does, run by our own.
func ownKernel(r config.Handler) bool {
	binary, _ := r.Options["BinaryName"].(string)
	return r.Type != config.RuncType || strings.HasPrefix(filepath.Base(binary), "runsc")
}

// newRuntimes takes over the runtimes of a configuration that was read again. Those
// that are as they were stay, with what was learned of them; one that is gone stays for
// the pods that it runs. Networks of a runtime's own wait for a restart.
func (p *parts) newRuntimes(next config.Config) {
	was, is := p.last.Plugins.Runtime, next.Plugins.Runtime
	all := maps.Clone(p.pods.Handlers())
	same := reflect.DeepEqual(specSettings(was), specSettings(is))
	for name, r := range is.Containerd.Runtimes {
		old, had := was.Containerd.Runtimes[name]
		if had && same && reflect.DeepEqual(old, r) && p.last.SnapshotterOf(name) == next.SnapshotterOf(name) && all[name] != nil {
			continue
		}
		h := p.handler(next, name, r)
		if before := all[name]; before != nil {
			h.Networks = before.Networks
		}
		all[name] = h
	}
	all[""] = all[is.Containerd.Default]
	p.pods.SetHandlers(all)
}

// handler builds one runtime handler. One that is broken stops neither the others nor
// the daemon.
func (p *parts) handler(cfg config.Config, name string, r config.Handler) *pod.Handler {
	h, err := p.tryHandler(cfg, name, r)
	if err != nil {
		p.log.Error("a runtime cannot be used", "name", name, "error", err)
		return &pod.Handler{Broken: err}
	}
	return h
}

func (p *parts) tryHandler(cfg config.Config, name string, r config.Handler) (*pod.Handler, error) {
	options, err := r.ShimOptions()
	if err != nil {
		return nil, err
	}
	h := &pod.Handler{Runtime: r.Type, Options: options, Snapshotter: cfg.SnapshotterOf(name)}
	if r.Path != "" {
		h.Runtime = r.Path
	}
	h.Handler = podspec.Handler{
		Settings: specSettings(cfg.Plugins.Runtime), PodAnnotations: r.PodAnnotations, ContainerAnnotations: r.CtrAnnotations,
		NoHostDevices: r.PrivilegedNoDevices, AllowAllDevices: r.PrivilegedAllowed, CgroupWritable: r.CgroupWritable,
		Sandboxed: ownKernel(r),
	}
	if r.Type == config.RuncType {
		runc, err := r.Runc()
		if err != nil {
			return nil, err
		}
		h.SystemdCgroup = runc.SystemdCgroup != nil && *runc.SystemdCgroup
	}
	if r.BaseSpec != "" {
		if h.BaseSpec, err = podspec.LoadBase(r.BaseSpec); err != nil {
			return nil, err
		}
	}
	h.Learn = func(ctx context.Context) (bool, bool) {
		f, err := p.features(ctx, r, h)
		if err != nil {
			p.log.Warn("a runtime does not say what it can do", "runtime", h.Runtime, "error", err)
			return false, false
		}
		return canIDMap(f), slices.Contains(f.MountOptions, "rro")
	}
	return h, nil
}

func canIDMap(f *features.Features) bool {
	return f.Linux != nil && f.Linux.MountExtensions != nil && f.Linux.MountExtensions.IDMap != nil && f.Linux.MountExtensions.IDMap.Enabled != nil &&
		*f.Linux.MountExtensions.IDMap.Enabled
}

// registerCRI serves the two services of the CRI.
func (p *parts) registerCRI(s *grpc.Server) {
	cfg := p.cfg.Plugins
	if p.pods == nil {
		return // disabled by the configuration
	}
	var pinned []string
	for name, ref := range cfg.Images.Pinned {
		if name != "sandbox" {
			pinned = append(pinned, ref)
		}
	}
	criapi.RegisterRuntimeServiceServer(s, cri.Runtime{Pods: p.pods, Streams: p.streams, BuildVersion: Version})
	criapi.RegisterImageServiceServer(s, cri.Images{Store: p.store, Images: p.images, Snapshotter: p.snapshotterOf, PullIdle: cfg.Images.ProgressTimeout.Std(), Pinned: pinned})
}

// snapshotterOf is where images of a runtime are unpacked; "" is the default.
func (p *parts) snapshotterOf(handler string) string {
	if h := p.pods.Handlers()[handler]; h != nil {
		return h.Snapshotter
	}
	return ""
}

// criPlugin is the name by which the configuration disables the CRI.
const criPlugin = "io.containerd.grpc.v1.cri"

// podWarnings are the deprecations that show in the node's status.
func (p *parts) podWarnings() []string {
	var out []string
	for _, d := range p.cfg.Deprecations {
		if !slices.Contains(p.cfg.Plugins.Runtime.IgnoreWarnings, d.ID) {
			out = append(out, d.Message)
		}
	}
	return out
}

// collectNetworks gives back addresses that no pod has any more: at start what a
// killed daemon leaked, then now and then.
func (p *parts) collectNetworks(ctx context.Context) error {
	for {
		for _, n := range p.networks {
			if err := n.GC(ctx, p.pods.Attachments); err != nil && ctx.Err() == nil {
				p.log.Warn("leftover network attachments", "error", err)
			}
		}
		every := p.cfg.Berth.CNIGCInterval.Std()
		if every <= 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(every):
		}
	}
}

// servePods runs what follows pods in the background; serve waits for each.
func (p *parts) servePods(ctx context.Context, ends *event.Subscription, serve func(string, func() error)) {
	if p.pods == nil {
		return
	}
	serve("follow the ends of containers", func() error { return p.pods.Watch(ctx, ends) })
	for _, n := range p.networks {
		serve("follow network configurations", func() error { return n.Run(ctx) })
	}
	serve("collect leftover attachments", func() error { return p.collectNetworks(ctx) })
}

// recoverPods shows the pods of earlier daemons. The ends of containers are
// subscribed to before, so that none falls between.
func (p *parts) recoverPods(ctx context.Context) (*event.Subscription, error) {
	if p.pods == nil {
		return nil, p.tasks.Adopt(ctx)
	}
	ends, err := p.exchange.Subscribe(pod.TaskFilter)
	if err == nil {
		err = p.tasks.Adopt(ctx)
	}
	if err == nil {
		err = p.pods.Recover(ctx)
	}
	if err == nil {
		if err := p.nri.Start(pod.Plugins{Pods: p.pods}); err != nil { // pods run without; what needs a plugin does not
			p.log.Error("NRI plugins cannot connect", "error", err)
		}
	}
	return ends, err
}
