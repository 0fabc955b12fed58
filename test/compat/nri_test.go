package compat

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/lab"
)

// plugin is an NRI plugin that notes what it is told and adjusts every container.
type plugin struct {
	mu     sync.Mutex
	events []string
	synced []string
	ips    []string
	refuse error
	up     func([]*api.ContainerUpdate) ([]*api.ContainerUpdate, error)
}

func (p *plugin) note(what string, c *api.Container) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events = append(p.events, what+" "+c.GetName())
}

func (p *plugin) seen() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.events)
}

func (p *plugin) Synchronize(_ context.Context, _ []*api.PodSandbox, all []*api.Container) ([]*api.ContainerUpdate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.synced = []string{"(synchronized)"}
	for _, c := range all {
		p.synced = append(p.synced, c.GetName())
	}
	return nil, nil
}

func (p *plugin) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ips = pod.GetIps()
	return p.refuse
}

func (p *plugin) CreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	p.note("create", c)
	a := &api.ContainerAdjustment{}
	a.AddEnv("BY", "a plugin")
	a.AddMount(&api.Mount{Destination: "/given", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "size=64k"}})
	a.AddAnnotation("plugin.example/was", "here")
	a.SetLinuxMemoryLimit(48 << 20)
	return a, nil, nil
}

func (p *plugin) StartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.note("start", c)
	return nil
}

func (p *plugin) UpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container, r *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	p.note("update", c)
	u := &api.ContainerUpdate{}
	u.SetContainerId(c.GetId())
	u.SetLinuxCPUShares(r.GetCpu().GetShares().GetValue() + 1)
	return []*api.ContainerUpdate{u}, nil
}

func (p *plugin) StopContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	p.note("stop", c)
	return nil, nil
}

func (p *plugin) RemoveContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.note("remove", c)
	return nil
}

// patient is the configuration of a daemon that waits for plugins of a slow machine.
var patient = []string{"[plugins.\"io.containerd.nri.v1.nri\"]", "plugin_request_timeout = \"30s\"", "plugin_registration_timeout = \"30s\""}

type quiet struct{}

func (quiet) Debugf(context.Context, string, ...any) {}
func (quiet) Infof(context.Context, string, ...any)  {}
func (quiet) Warnf(context.Context, string, ...any)  {}
func (quiet) Errorf(context.Context, string, ...any) {}

// join connects a plugin and waits until it takes part. leave disconnects it.
func (n *node) join(p *plugin, index, name string) (leave func()) {
	n.t.Helper()
	s, err := stub.New(p, stub.WithPluginName(name), stub.WithPluginIdx(index), stub.WithSocketPath(filepath.Join(n.d.State, "nri.sock")),
		stub.WithOnClose(func() {}), stub.WithLogger(quiet{}))
	if err != nil {
		n.t.Fatal(err)
	}
	lab.Until(n.t, 30*time.Second, "the plugin connects", func() bool { return s.Start(n.ctx) == nil })
	lab.Until(n.t, 30*time.Second, "the plugin is synchronized", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return p.synced != nil })
	p.up = s.UpdateContainers
	var once sync.Once
	leave = func() { once.Do(s.Stop) }
	n.t.Cleanup(leave)
	return leave
}

// TestNRI has a plugin change a container that is made, watch it live, change it
// while it runs, and find it again after the daemon was killed.
func TestNRI(t *testing.T) {
	n := newNode(t, patient...)
	p := &plugin{}
	leave := n.join(p, "10", "sample")
	pc := n.podConfig("plugged", cri.NamespaceMode_CONTAINER)
	pod := n.runPod(pc)
	if !slices.Contains(p.ips, n.podStatus(pod).GetNetwork().GetIp()) {
		t.Errorf("the plugin sees the pod's addresses as %v", p.ips)
	}
	c := n.containerConfig("app", `echo "BY=$BY"; grep " /given " /proc/mounts; while [ ! -e /given/end ]; do sleep 0.1; done`, cri.NamespaceMode_CONTAINER)
	id := n.create(pod, pc, c)
	n.start(id)
	logfile := filepath.Join(pc.LogDirectory, "app/0.log")
	lab.Until(t, 30*time.Second, "the container speaks", func() bool { return strings.Count(n.log(logfile), "\n") >= 2 })
	if text := n.log(logfile); !strings.Contains(text, "BY=a plugin") || !strings.Contains(text, "tmpfs /given tmpfs rw,nosuid") {
		t.Errorf("the container does not see what the plugin gave it:\n%s", text)
	}
	if _, err := n.rt().UpdateContainerResources(n.ctx, &cri.UpdateContainerResourcesRequest{ContainerId: id, Linux: &cri.LinuxContainerResources{CpuShares: 300}}); err != nil {
		t.Fatal(err)
	}
	u := &api.ContainerUpdate{}
	u.SetContainerId(id)
	u.SetLinuxMemoryLimit(64 << 20)
	missing := &api.ContainerUpdate{ContainerId: "none"}
	if failed, err := p.up([]*api.ContainerUpdate{u, missing}); err != nil || len(failed) != 1 || failed[0].ContainerId != "none" {
		t.Errorf("an update that the plugin asks for: failed %v, %v", failed, err)
	}
	if r := n.status(id).GetResources().GetLinux(); r.GetMemoryLimitInBytes() != 64<<20 {
		t.Errorf("after it the container has %v", r)
	}
	leave()
	n.d.Kill()
	n.d.Start()
	t.Cleanup(n.removeAll)
	late := &plugin{}
	n.join(late, "20", "late")
	if !slices.Contains(late.synced, "app") {
		t.Errorf("after the daemon was killed a plugin is told of %v", late.synced)
	}
	if _, err := n.rt().StopContainer(n.ctx, &cri.StopContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.rt().RemovePodSandbox(n.ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Fatal(err)
	}
	if got, want := append(p.seen(), late.seen()...), []string{"create app", "start app", "update app", "stop app", "remove app"}; !slices.Equal(got, want) {
		t.Errorf("the plugins have seen %q, want %q", got, want)
	}
	// A plugin that does not want a pod prevents it, and nothing of it stays.
	late.refuse = errors.New("not today")
	if _, err := n.rt().RunPodSandbox(n.ctx, &cri.RunPodSandboxRequest{Config: pc}); err == nil || !strings.Contains(err.Error(), "not today") {
		t.Errorf("a pod that a plugin refuses: %v", err)
	}
	if all, err := n.rt().ListPodSandbox(n.ctx, &cri.ListPodSandboxRequest{}); err != nil || len(all.GetItems()) != 0 {
		t.Errorf("pods that are left: %v, %v", all.GetItems(), err)
	}
}

// TestNRIRequired: without a required plugin no container is made, and with it one is.
func TestNRIRequired(t *testing.T) {
	n := newNode(t, append(slices.Clone(patient), "[plugins.\"io.containerd.nri.v1.nri\".default_validator]", "enable = true", "required_plugins = [\"guard\"]")...)
	pc := n.podConfig("guarded", cri.NamespaceMode_CONTAINER)
	pod := n.runPod(pc)
	ask := &cri.CreateContainerRequest{PodSandboxId: pod, SandboxConfig: pc, Config: n.containerConfig("app", "true", cri.NamespaceMode_CONTAINER)}
	if _, err := n.rt().CreateContainer(n.ctx, ask); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "guard") {
		t.Errorf("without the plugin: %v", err)
	}
	leave := n.join(&plugin{}, "10", "guard")
	r, err := n.rt().CreateContainer(n.ctx, ask)
	if err != nil {
		t.Fatalf("with it: %v\n%s", err, n.d.Log)
	}
	n.start(r.GetContainerId())
	leave()
	lab.Until(t, 30*time.Second, "no container is made without the plugin", func() bool {
		ask.Config.Metadata.Attempt++
		_, err := n.rt().CreateContainer(n.ctx, ask)
		return status.Code(err) == codes.FailedPrecondition
	})
}
