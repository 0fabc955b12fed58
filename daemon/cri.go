package daemon

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go/features"
	"google.golang.org/grpc"
	criapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/daemon/config"
	"github.com/berthd/berth/engine/event"
	"github.com/berthd/berth/engine/pod"
	"github.com/berthd/berth/engine/podspec"
	"github.com/berthd/berth/engine/sandbox"
	"github.com/berthd/berth/host/cni"
	"github.com/berthd/berth/host/shim"
	"github.com/berthd/berth/server/cri"
)

// wirePods builds what a kubelet needs on top of tasks and images.
func (p *parts) wirePods(ctx context.Context, launcher *shim.Launcher) error {
	cfg := p.cfg.Plugins.Runtime
	host, err := podspec.Probe(p.log)
	if err != nil {
		return err
	}
	own, err := launcher.Own()
	if err != nil {
		return err
	}
	owner := cni.NewOwner(p.cfg.Root)
	p.networks = append(p.networks, p.network(owner, cfg.CNI.ConfDir, cfg.CNI.Max))
	box := sandbox.New(sandbox.Config{State: p.cfg.State, Root: p.cfg.Root, Shim: own, Store: p.store, Tasks: p.tasks})
	p.plugin("sandbox.controller.v1", "podsandbox")
	handlers := map[string]*pod.Handler{}
	for name, r := range cfg.Containerd.Runtimes {
		if handlers[name], err = p.handler(ctx, launcher, r, owner); err != nil {
			return fmt.Errorf("runtime %q: %w", name, err)
		}
	}
	handlers[""] = handlers[cfg.Containerd.Default]
	p.pods = pod.New(ctx, pod.Config{
		Root: p.cfg.Root, State: p.cfg.State, GC: p.collect, Store: p.store, Tasks: p.tasks, Sandbox: box, Images: p.images, Exchange: p.exchange,
		Networks: p.networks[0], CNIDir: cfg.CNI.ConfDir, CNITemplate: cfg.CNI.Template, Owner: owner, Host: host, Handlers: handlers,
		MaxLine: max(0, cfg.MaxLogLine), IgnoreVolumes: cfg.IgnoreVolumes, Prefer: cni.IPPreference(cfg.CNI.IPPref), Log: p.log,
	})
	p.plugin("cri.v1", "images")
	p.plugin("cri.v1", "runtime")
	p.plugin("grpc.v1", "cri")
	return nil
}

func (p *parts) network(owner cni.Owner, dir string, most int) *cni.Networks {
	cfg := p.cfg.Plugins.Runtime.CNI
	bins := cfg.BinDirs
	if cfg.BinDir != "" {
		bins = []string{cfg.BinDir}
	}
	return cni.New(cni.Config{Dir: dir, Most: most, BinDirs: bins, Builtin: true, Owner: owner, Log: p.log})
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

// handler builds one runtime handler.
func (p *parts) handler(ctx context.Context, launcher *shim.Launcher, r config.Handler, owner cni.Owner) (*pod.Handler, error) {
	options, err := r.ShimOptions()
	if err != nil {
		return nil, err
	}
	h := &pod.Handler{Runtime: r.Type, Options: options, Snapshotter: cmp.Or(r.Snapshotter, p.cfg.Plugins.Images.Snapshotter)}
	if r.Path != "" {
		h.Runtime = r.Path
	}
	systemd, _ := r.Options["SystemdCgroup"].(bool)
	h.Handler = podspec.Handler{
		Settings: specSettings(p.cfg.Plugins.Runtime), SystemdCgroup: systemd, PodAnnotations: r.PodAnnotations, ContainerAnnotations: r.CtrAnnotations,
		NoHostDevices: r.PrivilegedNoDevices, AllowAllDevices: r.PrivilegedAllowed, CgroupWritable: r.CgroupWritable,
		// What is not runc may have a kernel of its own, which a sandbox container starts.
		Sandboxed: r.Type != config.RuncType,
	}
	if r.BaseSpec != "" {
		if h.BaseSpec, err = podspec.LoadBase(r.BaseSpec); err != nil {
			return nil, err
		}
	}
	if r.CNIConfDir != "" {
		h.Networks = p.network(owner, r.CNIConfDir, cmp.Or(r.CNIMax, p.cfg.Plugins.Runtime.CNI.Max))
		p.networks = append(p.networks, h.Networks)
	}
	f, err := launcher.Features(ctx, h.Runtime, options)
	if err != nil {
		p.log.Warn("a runtime does not say what it can do", "runtime", h.Runtime, "error", err)
		return h, nil
	}
	h.IDMap, h.RecursiveReadOnly = canIDMap(f), slices.Contains(f.MountOptions, "rro")
	return h, nil
}

func canIDMap(f *features.Features) bool {
	return f.Linux != nil && f.Linux.MountExtensions != nil && f.Linux.MountExtensions.IDMap != nil && f.Linux.MountExtensions.IDMap.Enabled != nil &&
		*f.Linux.MountExtensions.IDMap.Enabled
}

// registerCRI serves the two services of the CRI.
func (p *parts) registerCRI(s *grpc.Server) {
	cfg := p.cfg.Plugins
	own := map[string]string{}
	for name, r := range cfg.Runtime.Containerd.Runtimes {
		own[name] = cmp.Or(r.Snapshotter, cfg.Images.Platforms[name].Snapshotter, cfg.Images.Snapshotter)
	}
	var pinned []string
	for name, ref := range cfg.Images.Pinned {
		if name != "sandbox" {
			pinned = append(pinned, ref)
		}
	}
	criapi.RegisterRuntimeServiceServer(s, cri.Runtime{Pods: p.pods, BuildVersion: Version})
	criapi.RegisterImageServiceServer(s, cri.Images{Store: p.store, Images: p.images, Snapshotters: own, PullIdle: cfg.Images.ProgressTimeout.Std(), Pinned: pinned})
}

// podEvents is subscribed before anything is recovered, so that no end of a
// container falls between.
func (p *parts) podEvents() (*event.Subscription, error) { return p.exchange.Subscribe(pod.TaskFilter) }
