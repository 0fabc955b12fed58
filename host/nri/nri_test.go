package nri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"

	"github.com/berthd/berth/base/errs"
)

// world is a runtime with pods and containers of names only.
type world struct {
	mu         sync.Mutex
	pods       []*api.PodSandbox
	containers []*api.Container
	updates    []*api.ContainerUpdate
	evicted    []string
	fail       map[string]error // of Update, by container
}

func (w *world) Snapshot(context.Context) ([]*api.PodSandbox, []*api.Container, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.pods), slices.Clone(w.containers), nil
}

func (w *world) Update(_ context.Context, u *api.ContainerUpdate) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.updates = append(w.updates, u)
	return w.fail[u.ContainerId]
}

func (w *world) Evict(_ context.Context, id, reason string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.evicted = append(w.evicted, id+": "+reason)
	return nil
}

// makes a container of a name as an engine does: hook, then visible.
func (w *world) make(ctx context.Context, p *Plugins, id string) (*api.ContainerAdjustment, error) {
	pod := &api.PodSandbox{Id: "pod", Name: "pod"}
	view := func(a *api.ContainerAdjustment) (*api.Container, error) {
		c := &api.Container{Id: id, Name: "n-" + id, PodSandboxId: "pod", Env: []string{"A=b"}}
		for _, e := range a.GetEnv() {
			c.Env = append(c.Env, e.ToOCI())
		}
		return c, nil
	}
	a, done, err := p.Create(ctx, pod, view)
	if err == nil {
		w.mu.Lock()
		w.containers = append(w.containers, &api.Container{Id: id})
		w.mu.Unlock()
	}
	done()
	return a, err
}

// tester is a plugin whose answers are functions.
type tester struct {
	mu      sync.Mutex
	synced  []string
	events  []string
	sync    func(context.Context) error
	create  func(context.Context, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error)
	update  func(*api.Container, *api.LinuxResources) ([]*api.ContainerUpdate, error)
	run     func(context.Context) error
	config  string
	ready   chan struct{}
	closed  chan struct{}
	onClose sync.Once
}

func (t *tester) note(what, id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.events = append(t.events, what+" "+id)
}

func (t *tester) Configure(_ context.Context, config, runtime, version string) (stub.EventMask, error) {
	t.config = config + "|" + runtime + "|" + version
	return 0, nil
}

func (t *tester) Synchronize(ctx context.Context, pods []*api.PodSandbox, cs []*api.Container) ([]*api.ContainerUpdate, error) {
	t.mu.Lock()
	for _, c := range cs {
		t.synced = append(t.synced, c.Id)
	}
	t.mu.Unlock()
	defer close(t.ready)
	if t.sync != nil {
		return nil, t.sync(ctx)
	}
	return nil, nil
}

func (t *tester) RunPodSandbox(ctx context.Context, p *api.PodSandbox) error {
	t.note("run", p.Id)
	if t.run != nil {
		return t.run(ctx)
	}
	return nil
}

func (t *tester) CreateContainer(ctx context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	t.note("create", c.Id)
	if t.create != nil {
		return t.create(ctx, c)
	}
	return nil, nil, nil
}

func (t *tester) UpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container, r *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	t.note("update", c.Id)
	if t.update != nil {
		return t.update(c, r)
	}
	return nil, nil
}

func (t *tester) RemoveContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	t.note("remove", c.Id)
	return nil
}

// testbed is the plugins of a test, with a socket of their own.
func testbed(t *testing.T, w *world, change func(*Config)) *Plugins {
	t.Helper()
	cfg := Config{
		Name: "berth", Version: "1", Socket: filepath.Join(t.TempDir(), "nri.sock"), Register: 10 * time.Second, Request: 10 * time.Second, // more than a slow machine needs
		Log: slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&cfg)
	}
	p := New(t.Context(), cfg)
	if err := p.Start(w); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(cfg.Socket); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket stays: %v", err)
		}
	})
	return p
}

// join connects a plugin; it returns at once.
func join(t *testing.T, p *Plugins, index, name string, pl *tester) stub.Stub {
	t.Helper()
	pl.ready, pl.closed = make(chan struct{}), make(chan struct{})
	s, err := stub.New(pl, stub.WithPluginName(name), stub.WithPluginIdx(index), stub.WithSocketPath(p.cfg.Socket),
		stub.WithOnClose(func() { pl.onClose.Do(func() { close(pl.closed) }) }), stub.WithLogger(quiet{}))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = s.Start(t.Context())
	}()
	t.Cleanup(func() { s.Stop(); <-ended })
	return s
}

type quiet struct{}

func (quiet) Debugf(context.Context, string, ...any) {}
func (quiet) Infof(context.Context, string, ...any)  {}
func (quiet) Warnf(context.Context, string, ...any)  {}
func (quiet) Errorf(context.Context, string, ...any) {}

// await waits until a plugin takes part, or does no more.
func await(t *testing.T, p *Plugins, name string, there bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		i := slices.Index(p.Names(), name)
		if (i >= 0) == there {
			if !there {
				return
			}
			p.mu.Lock()
			busy := len(p.mu.all[i].busy) > 0
			p.mu.Unlock()
			if !busy {
				return
			}
		}
		if time.Now().After(end) {
			t.Fatalf("plugin %s: takes part is not %v; there are %v", name, there, p.Names())
		}
	}
}

func TestNobody(t *testing.T) {
	var none *Plugins
	ctx := t.Context()
	if a, done, err := none.Create(ctx, nil, nil); a != nil || err != nil {
		t.Error(a, err)
	} else {
		done()
	}
	if r, err := none.UpdateContainer(ctx, nil, nil, &api.LinuxResources{}); r == nil || err != nil {
		t.Error(r, err)
	}
	if err := errors.Join(none.Start(nil), none.StopContainer(ctx, nil, nil), none.RemovePod(ctx, nil), none.Close()); err != nil {
		t.Error(err)
	}
	w := &world{}
	p := testbed(t, w, nil)
	if a, err := w.make(ctx, p, "x"); a != nil || err != nil {
		t.Error(a, err)
	}
}

func TestOrderAndAdjustments(t *testing.T) {
	w := &world{}
	p := testbed(t, w, nil)
	var order []string
	plugin := func(name string, adjust func(*api.ContainerAdjustment)) *tester {
		return &tester{create: func(_ context.Context, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
			order = append(order, name+" sees "+strings.Join(c.Env, " "))
			a := &api.ContainerAdjustment{}
			adjust(a)
			return a, []*api.ContainerUpdate{{ContainerId: "other-" + name, Linux: &api.LinuxContainerUpdate{Resources: &api.LinuxResources{Cpu: &api.LinuxCPU{Shares: api.UInt64(5)}}}}}, nil
		}}
	}
	join(t, p, "20", "b", plugin("b", func(a *api.ContainerAdjustment) { a.AddMount(&api.Mount{Destination: "/m"}); a.SetLinuxCPUShares(7) }))
	await(t, p, "20-b", true)
	join(t, p, "10", "a", plugin("a", func(a *api.ContainerAdjustment) { a.AddEnv("X", "y"); a.RemoveEnv("A") }))
	await(t, p, "10-a", true)
	a, err := w.make(t.Context(), p, "c1")
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"a sees A=b", "b sees A=b -A= X=y"}; !slices.Equal(order, want) {
		t.Errorf("order: %q", order)
	}
	if len(a.Env) != 2 || a.Env[0].Key != "-A" || a.Env[1].Key != "X" || len(a.Mounts) != 1 || a.Linux.Resources.Cpu.Shares.GetValue() != 7 {
		t.Errorf("adjustment: %v", a)
	}
	if len(w.updates) != 2 || w.updates[0].ContainerId != "other-a" {
		t.Errorf("updates of others: %v", w.updates)
	}
}

func TestConflict(t *testing.T) {
	for _, c := range []struct {
		name string
		a, b func(*api.ContainerAdjustment)
		ok   bool
	}{
		{"env", func(a *api.ContainerAdjustment) { a.AddEnv("X", "1") }, func(a *api.ContainerAdjustment) { a.AddEnv("X", "2") }, false},
		{"env removed first", func(a *api.ContainerAdjustment) { a.AddEnv("X", "1") }, func(a *api.ContainerAdjustment) { a.RemoveEnv("X"); a.AddEnv("X", "2") }, true},
		{"other env", func(a *api.ContainerAdjustment) { a.AddEnv("X", "1") }, func(a *api.ContainerAdjustment) { a.AddEnv("Y", "2") }, true},
		{"shares", func(a *api.ContainerAdjustment) { a.SetLinuxCPUShares(1) }, func(a *api.ContainerAdjustment) { a.SetLinuxCPUShares(1) }, false},
		{"memory", func(a *api.ContainerAdjustment) { a.SetLinuxMemoryLimit(1) }, func(a *api.ContainerAdjustment) { a.SetLinuxMemoryLimit(2) }, false},
		{"annotation", func(a *api.ContainerAdjustment) { a.AddAnnotation("k", "1") }, func(a *api.ContainerAdjustment) { a.AddAnnotation("k", "2") }, false},
		{"annotation removed", func(a *api.ContainerAdjustment) { a.AddAnnotation("k", "1") }, func(a *api.ContainerAdjustment) { a.RemoveAnnotation("k"); a.AddAnnotation("k", "2") }, true},
		{"args", func(a *api.ContainerAdjustment) { a.SetArgs([]string{"x"}) }, func(a *api.ContainerAdjustment) { a.SetArgs([]string{"y"}) }, false},
		{"args overridden", func(a *api.ContainerAdjustment) { a.SetArgs([]string{"x"}) }, func(a *api.ContainerAdjustment) { a.UpdateArgs([]string{"y"}) }, true},
		{"hooks", func(a *api.ContainerAdjustment) { a.AddHooks(&api.Hooks{Poststop: []*api.Hook{{Path: "/a"}}}) }, func(a *api.ContainerAdjustment) {
			a.AddHooks(&api.Hooks{Poststop: []*api.Hook{{Path: "/b"}}})
		}, true},
		{"oom", func(a *api.ContainerAdjustment) { n := 3; a.SetLinuxOomScoreAdj(&n) }, func(a *api.ContainerAdjustment) { n := 4; a.SetLinuxOomScoreAdj(&n) }, false},
		{"rdt", func(a *api.ContainerAdjustment) { a.SetLinuxRDTClosID("x") }, func(a *api.ContainerAdjustment) { a.SetLinuxRDTClosID("y") }, false},
		{"rdt removed", func(a *api.ContainerAdjustment) { a.SetLinuxRDTClosID("x") }, func(a *api.ContainerAdjustment) { a.RemoveLinuxRDT() }, true},
		{"unified", func(a *api.ContainerAdjustment) { a.AddLinuxUnified("k.x", "1") }, func(a *api.ContainerAdjustment) { a.AddLinuxUnified("k.x", "2") }, false},
		{"device", func(a *api.ContainerAdjustment) { a.AddDevice(&api.LinuxDevice{Path: "/dev/x"}) }, func(a *api.ContainerAdjustment) {
			a.AddDevice(&api.LinuxDevice{Path: "/dev/x"})
		}, false},
	} {
		m := newMerger("c")
		for i, f := range []func(*api.ContainerAdjustment){c.a, c.b} {
			a := &api.ContainerAdjustment{}
			f(a)
			_, err := m.adjust(a, fmt.Sprintf("%02d-p", i))
			if i == 0 && err != nil || i == 1 && (err == nil) != c.ok {
				t.Errorf("%s: plugin %d: %v", c.name, i, err)
			}
		}
	}
}

// TestHookErrors: what a plugin says is the request's error; a plugin that does not
// answer is left out, unless it is required.
func TestHookErrors(t *testing.T) {
	w := &world{}
	p := testbed(t, w, func(c *Config) { c.Required, c.Request = []string{"must"}, 2*time.Second })
	ctx := t.Context()
	if _, err := w.make(ctx, p, "without"); !errs.Is(err, errs.FailedPrecondition) || !strings.Contains(err.Error(), "must") {
		t.Fatalf("without the required plugin: %v", err)
	}
	hang := func(ctx context.Context, _ *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		<-ctx.Done()
		return nil, nil, ctx.Err()
	}
	says := errors.New("I do not like it")
	must := &tester{}
	join(t, p, "50", "must", must)
	await(t, p, "50-must", true)
	if _, err := w.make(ctx, p, "with"); err != nil {
		t.Fatalf("with it: %v", err)
	}
	may := &tester{create: func(context.Context, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		return nil, nil, says
	}}
	join(t, p, "10", "may", may)
	await(t, p, "10-may", true)
	if _, err := w.make(ctx, p, "c"); err == nil || !strings.Contains(err.Error(), says.Error()) || !strings.Contains(err.Error(), "10-may") {
		t.Errorf("an error that a plugin returns: %v", err)
	}
	if !slices.Contains(p.Names(), "10-may") {
		t.Error("a plugin that returns an error is left out")
	}
	may.create = hang
	if _, err := w.make(ctx, p, "d"); err != nil {
		t.Errorf("a plugin that hangs: %v", err)
	}
	await(t, p, "10-may", false)
	must.create = hang
	if _, err := w.make(ctx, p, "e"); !errs.Is(err, errs.Unavailable) {
		t.Errorf("a required plugin that hangs: %v", err)
	}
	await(t, p, "50-must", false)
	if _, err := w.make(ctx, p, "f"); !errs.Is(err, errs.FailedPrecondition) {
		t.Errorf("a required plugin that is gone: %v", err)
	}
}

// TestCallerGivesUp: a request that its caller ends is no plugin's fault.
func TestCallerGivesUp(t *testing.T) {
	w := &world{}
	p := testbed(t, w, nil)
	pl := &tester{run: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }}
	join(t, p, "10", "slow", pl)
	await(t, p, "10-slow", true)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	done, err := p.RunPod(ctx, &api.PodSandbox{Id: "p"})
	done()
	if err == nil {
		t.Error("it succeeds")
	}
	if !slices.Contains(p.Names(), "10-slow") {
		t.Error("the plugin is left out")
	}
}

// TestNothingIsLost makes containers while a plugin joins: it learns of each, by
// synchronization or by a request.
func TestNothingIsLost(t *testing.T) {
	w := &world{}
	p := testbed(t, w, nil)
	join(t, p, "00", "first", &tester{})
	await(t, p, "00-first", true)
	stop := make(chan struct{})
	var made []string
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				id := fmt.Sprintf("c%d-%d", i, n)
				if _, err := w.make(t.Context(), p, id); err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				made = append(made, id)
				mu.Unlock()
			}
		})
	}
	time.Sleep(20 * time.Millisecond)
	late := &tester{sync: func(context.Context) error { time.Sleep(150 * time.Millisecond); return nil }}
	join(t, p, "10", "late", late)
	await(t, p, "10-late", true)
	time.Sleep(20 * time.Millisecond)
	close(stop)
	wg.Wait()
	late.mu.Lock()
	defer late.mu.Unlock()
	seen := map[string]int{}
	for _, id := range late.synced {
		seen[id]++
	}
	for _, e := range late.events {
		seen[strings.TrimPrefix(e, "create ")]++
	}
	if len(late.synced) == 0 || len(late.events) == 0 {
		t.Fatalf("%d synchronized, %d created: the test tests nothing", len(late.synced), len(late.events))
	}
	for _, id := range made {
		if seen[id] != 1 {
			t.Errorf("the plugin has seen container %s %d times", id, seen[id])
		}
	}
}

func TestUnsolicited(t *testing.T) {
	w := &world{fail: map[string]error{"gone": errs.NotFound}}
	p := testbed(t, w, nil)
	s := join(t, p, "10", "x", &tester{})
	await(t, p, "10-x", true)
	up := func(id string) *api.ContainerUpdate { return &api.ContainerUpdate{ContainerId: id} }
	failed, err := s.UpdateContainers([]*api.ContainerUpdate{up("there"), up("gone")})
	if err != nil || len(failed) != 1 || failed[0].ContainerId != "gone" {
		t.Errorf("failed: %v, %v", failed, err)
	}
}

func TestUpdateContainer(t *testing.T) {
	w := &world{}
	p := testbed(t, w, nil)
	pl := &tester{update: func(c *api.Container, r *api.LinuxResources) ([]*api.ContainerUpdate, error) {
		own, other := &api.ContainerUpdate{}, &api.ContainerUpdate{}
		own.SetContainerId(c.Id)
		own.SetLinuxCPUShares(r.Cpu.Shares.GetValue() * 2)
		other.SetContainerId("o")
		other.SetLinuxMemoryLimit(5)
		return []*api.ContainerUpdate{own, other}, nil
	}}
	join(t, p, "10", "x", pl)
	await(t, p, "10-x", true)
	r, err := p.UpdateContainer(t.Context(), &api.PodSandbox{}, &api.Container{Id: "c"}, &api.LinuxResources{Cpu: &api.LinuxCPU{Shares: api.UInt64(4), Quota: api.Int64(9)}})
	if err != nil || r.Cpu.Shares.GetValue() != 8 || r.Cpu.Quota.GetValue() != 9 {
		t.Errorf("%v, %v", r, err)
	}
	if len(w.updates) != 1 || w.updates[0].ContainerId != "o" || w.updates[0].Linux.Resources.Memory.Limit.GetValue() != 5 {
		t.Errorf("others: %v", w.updates)
	}
}

func TestSynchronizeInParts(t *testing.T) {
	w := &world{}
	big := strings.Repeat("x", 100<<10)
	for i := range 60 { // 6 MB
		w.containers = append(w.containers, &api.Container{Id: fmt.Sprint(i), Args: []string{big}})
	}
	p := testbed(t, w, nil)
	pl := &tester{}
	join(t, p, "10", "x", pl)
	await(t, p, "10-x", true)
	pl.mu.Lock()
	defer pl.mu.Unlock()
	if len(pl.synced) != 60 {
		t.Errorf("%d containers", len(pl.synced))
	}
}

func TestBadNames(t *testing.T) {
	w := &world{}
	p := testbed(t, w, func(c *Config) { c.Register = 300 * time.Millisecond })
	for _, n := range []struct{ index, name string }{{"1", "x"}, {"aa", "x"}, {"10", "a/b"}, {"10", ""}} {
		if err := checkRegistration(&plugin{}, &api.RegisterPluginRequest{PluginName: n.name, PluginIdx: n.index}); !errs.Is(err, errs.InvalidArgument) {
			t.Errorf("%v: %v", n, err)
		}
	}
	if err := New(t.Context(), p.cfg).Start(w); !errs.Is(err, errs.AlreadyExists) {
		t.Errorf("a second runtime at the socket: %v", err)
	}
	// One that connects and says nothing.
	c, err := net.Dial("unix", p.cfg.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("its connection is not closed: %v", err)
	}
}

// TestLaunched starts a plugin's program; it is this test's own.
func TestLaunched(t *testing.T) {
	dir, conf := t.TempDir(), t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	script := "#!/bin/sh\nexport BERTH_TEST_PLUGIN=1\nexec " + self + " -test.run=TestPluginProgram\n"
	for name, text := range map[string]string{
		dir + "/30-sample": script, conf + "/sample.conf": "of mine", dir + "/40-wasm": "\x00asm\x01\x00\x00\x00", dir + "/nonsense": script, dir + "/50-fails": "#!/bin/sh\nexit 1\n",
	} {
		if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	w := &world{}
	p := testbed(t, w, func(c *Config) { c.PluginDir, c.ConfigDir, c.Register = dir, conf, 30*time.Second })
	a, err := w.make(t.Context(), p, "c") // it waits for the programs
	if got := p.Names(); !slices.Equal(got, []string{"30-sample"}) {
		t.Fatalf("plugins %v", got)
	}
	if err != nil || len(a.GetEnv()) != 1 || a.Env[0].Value != "of mine|berth|1" {
		t.Errorf("%v, %v", a, err)
	}
	p.mu.Lock()
	cmd := p.mu.all[0].cmd
	p.mu.Unlock()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := exec.Command("kill", "-0", fmt.Sprint(cmd.Process.Pid)).Run(); err == nil {
		t.Error("the plugin's program lives on")
	}
}

// TestPluginProgram is that program.
func TestPluginProgram(t *testing.T) {
	if os.Getenv("BERTH_TEST_PLUGIN") == "" && os.Getenv(api.PluginSocketEnvVar) == "" {
		return // this is the test's own run
	}
	pl := &tester{ready: make(chan struct{})}
	pl.create = func(context.Context, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		a := &api.ContainerAdjustment{}
		a.AddEnv("CONFIG", pl.config)
		return a, nil, nil
	}
	s, err := stub.New(pl, stub.WithOnClose(func() { os.Exit(0) }), stub.WithLogger(quiet{}))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestValidator(t *testing.T) {
	hooks := func(a *api.ContainerAdjustment) { a.AddHooks(&api.Hooks{Poststop: []*api.Hook{{Path: "/x"}}}) }
	seccomp := func(a *api.ContainerAdjustment) {
		a.SetLinuxSeccompPolicy(&api.LinuxSeccomp{DefaultAction: "SCMP_ACT_ALLOW"})
	}
	profile := func(k api.SecurityProfile_ProfileType) *api.Container {
		return &api.Container{Id: "c", Name: "n", Linux: &api.LinuxContainer{SeccompProfile: &api.SecurityProfile{ProfileType: k}}}
	}
	pod := func(k, v string) *api.PodSandbox { return &api.PodSandbox{Annotations: map[string]string{k: v}} }
	for _, c := range []struct {
		name   string
		v      Validator
		pod    *api.PodSandbox
		c      *api.Container
		adjust func(*api.ContainerAdjustment)
		ok     bool
	}{
		{"nothing", Validator{RejectOCIHooks: true}, nil, nil, nil, true},
		{"hooks", Validator{RejectOCIHooks: true}, nil, nil, hooks, false},
		{"hooks allowed", Validator{}, nil, nil, hooks, true},
		{"seccomp default", Validator{RejectDefaultSeccomp: true}, nil, profile(api.SecurityProfile_RUNTIME_DEFAULT), seccomp, false},
		{"seccomp default, custom rejected", Validator{RejectCustomSeccomp: true}, nil, profile(api.SecurityProfile_RUNTIME_DEFAULT), seccomp, true},
		{"seccomp unconfined", Validator{RejectUnconfinedSeccomp: true}, nil, nil, seccomp, false},
		{"namespace", Validator{RejectNamespaces: true}, nil, nil, func(a *api.ContainerAdjustment) { a.AddOrReplaceNamespace(&api.LinuxNamespace{Type: "pid"}) }, false},
		{"sysctl", Validator{RejectSysctls: true}, nil, nil, func(a *api.ContainerAdjustment) { a.SetLinuxSysctl("a.b", "c") }, false},
		{"required", Validator{Required: []string{"x"}}, nil, nil, nil, false},
		{"required and there", Validator{Required: []string{"p"}}, nil, nil, nil, true},
		{"tolerated", Validator{Required: []string{"x"}, TolerateMissingAnnotations: "t"}, pod("t", "true"), nil, nil, true},
		{"not tolerated", Validator{Required: []string{"x"}, TolerateMissingAnnotations: "t"}, pod("t", "false"), nil, nil, false},
		{"tolerated nonsense", Validator{Required: []string{"x"}, TolerateMissingAnnotations: "t"}, pod("t", "yes please"), nil, nil, false},
		{"required by the pod", Validator{}, pod(requiredAnnotation, "[x]"), nil, nil, false},
		{"required by the pod for this one", Validator{}, pod(requiredAnnotation+"/container.n", "[p]"), nil, nil, true},
		{"required by nonsense", Validator{}, pod(requiredAnnotation, "{"), nil, nil, false},
	} {
		m := newMerger("c")
		if c.adjust != nil {
			a := &api.ContainerAdjustment{}
			c.adjust(a)
			if _, err := m.adjust(a, "10-p"); err != nil {
				t.Fatal(err)
			}
		}
		if c.c == nil {
			c.c = &api.Container{Id: "c", Name: "n"}
		}
		r := &api.ValidateContainerAdjustmentRequest{Pod: c.pod, Container: c.c, Adjust: m.result(), Owners: m.owners, Plugins: []*api.PluginInstance{{Name: "p", Index: "10"}}}
		if err := c.v.check(r); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
