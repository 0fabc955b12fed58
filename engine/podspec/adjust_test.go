package podspec

import (
	"encoding/json"
	"reflect"
	"slices"
	"testing"

	"github.com/containerd/nri/pkg/api"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"

	"github.com/berthd/berth/base/errs"
)

func TestAdjustGolden(t *testing.T) {
	w := newWorld()
	s, err := w.spec()
	if err != nil {
		t.Fatal(err)
	}
	before, err := Clone(s)
	if err != nil {
		t.Fatal(err)
	}
	a := &api.ContainerAdjustment{}
	a.AddAnnotation("k", "v")
	a.RemoveAnnotation("io.kubernetes.cri.image-name")
	a.AddMount(&api.Mount{Destination: "/etc/hosts/deep", Type: "bind", Source: "/x", Options: []string{"bind", "rslave"}})
	a.RemoveMount("/dev/mqueue")
	a.AddMount(&api.Mount{Destination: "/a", Type: "tmpfs", Source: "tmpfs"})
	a.AddEnv("NEW", "1")
	a.RemoveEnv("MODE")
	a.SetArgs([]string{"/bin/other"})
	a.AddHooks(&api.Hooks{CreateRuntime: []*api.Hook{{Path: "/hook", Args: []string{"hook"}, Timeout: api.Int(3)}}})
	a.AddRlimit("RLIMIT_CORE", 5, 4)
	a.AddDevice(&api.LinuxDevice{Path: "/dev/x", Type: "c", Major: 1, Minor: 2, FileMode: api.FileMode(uint32(0o600))})
	a.AddCDIDevice(&api.CDIDevice{Name: "v.com/c=d"})
	a.AddOrReplaceNamespace(&api.LinuxNamespace{Type: "network", Path: "/run/netns/other"})
	a.RemoveNamespace(&api.LinuxNamespace{Type: "ipc"})
	a.AddLinuxNetDevice("eth9", &api.LinuxNetDevice{Name: "dev0"})
	a.SetLinuxMemoryPolicy(api.MpolMode_MPOL_BIND, "0")
	a.SetLinuxMemoryLimit(1 << 28)
	a.SetLinuxCPUShares(999)
	a.SetLinuxCPUSetCPUs("1")
	a.SetLinuxPidLimits(77)
	a.SetLinuxRDTClosID("gold")
	a.SetLinuxCgroupsPath("/other")
	n := -900
	a.SetLinuxOomScoreAdj(&n)
	a.SetLinuxIOPriority(&api.LinuxIOPriority{Class: api.IOPrioClass_IOPRIO_CLASS_BE, Priority: 4})
	a.SetLinuxSeccompPolicy(&api.LinuxSeccomp{DefaultAction: "SCMP_ACT_ALLOW", Architectures: []string{"SCMP_ARCH_X86_64"}})
	a.SetLinuxSysctl("net.ipv4.ip_forward", "1")
	a.SetLinuxScheduler(&api.LinuxScheduler{Policy: api.LinuxSchedulerPolicy_SCHED_FIFO, Priority: 3})
	if err := Adjust(w.host, w.h, s, a); err != nil {
		t.Fatal(err)
	}
	golden(t, "adjusted", s)
	if reflect.DeepEqual(before, s) {
		t.Error("nothing has changed")
	}
	// What plugins then see of it is what they asked for.
	c := NRIContainer(s, NRIState{ID: w.c.ID, Pod: w.pod.ID, Config: w.c.Config})
	if c.Name != "app" || c.Linux.Resources.Cpu.Shares.GetValue() != 999 || c.Linux.OomScoreAdj.GetValue() != 0 || !slices.Contains(c.Env, "NEW=1") || c.Linux.CgroupsPath != "/other" {
		t.Errorf("the view is %v", c)
	}
}

func TestAdjustNothing(t *testing.T) {
	w := newWorld()
	s, err := w.spec()
	if err != nil {
		t.Fatal(err)
	}
	want, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []*api.ContainerAdjustment{nil, {}, {Linux: &api.LinuxContainerAdjustment{Resources: &api.LinuxResources{}}}} {
		if err := Adjust(w.host, w.h, s, a); err != nil {
			t.Fatal(err)
		}
		if got, err := json.Marshal(s); err != nil || string(got) != string(want) {
			t.Errorf("%v changes the spec, %v", a, err)
		}
	}
}

func TestAdjustRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*world, *api.ContainerAdjustment)
		kind   error
	}{
		"relative mount": {func(_ *world, a *api.ContainerAdjustment) { a.AddMount(&api.Mount{Destination: "x"}) }, errs.InvalidArgument},
		"cdi disabled": {func(w *world, a *api.ContainerAdjustment) {
			w.h.Settings.CDI = false
			a.AddCDIDevice(&api.CDIDevice{Name: "v.com/c=d"})
		}, errs.FailedPrecondition},
		"unified on v1":   {func(_ *world, a *api.ContainerAdjustment) { a.AddLinuxUnified("memory.high", "1") }, errs.FailedPrecondition},
		"class of rdt":    {func(_ *world, a *api.ContainerAdjustment) { a.SetLinuxRDTClass("x") }, errs.FailedPrecondition},
		"class of blocks": {func(_ *world, a *api.ContainerAdjustment) { a.SetLinuxBlockIOClass("x") }, errs.FailedPrecondition},
	} {
		w := newWorld()
		s, err := w.spec()
		if err != nil {
			t.Fatal(err)
		}
		a := &api.ContainerAdjustment{}
		c.change(w, a)
		if err := Adjust(w.host, w.h, s, a); !errs.Is(err, c.kind) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNRIPod(t *testing.T) {
	w := newWorld()
	p := NRIPod(w.pod, false, "runc", []string{"10.0.0.2"})
	if p.Name != "web-0" || p.Namespace != "shop" || p.Uid == "" || p.Linux.CgroupsPath != "/kubepods/burstable/pod1/"+w.pod.ID || len(p.Linux.Namespaces) != 3 ||
		p.Linux.PodResources.Memory.Limit.GetValue() != 1<<27 || p.Linux.PodOverhead.Cpu.Quota.GetValue() != 5000 {
		t.Errorf("%v", p)
	}
	if c := NRIContainer(nil, NRIState{Config: w.c.Config}); c.Name != "app" || c.Linux != nil {
		t.Errorf("without a spec: %v", c)
	}
}

// TestViews looks at every kind of spec, and at the least there can be.
func TestViews(t *testing.T) {
	for name, change := range goldens {
		w := newWorld()
		change(w)
		s, err := w.spec()
		if err != nil {
			t.Fatal(err)
		}
		c := NRIContainer(s, NRIState{ID: w.c.ID, Config: w.c.Config})
		if !slices.Equal(c.Args, s.Process.Args) || len(c.Mounts) != len(s.Mounts) || (c.Linux.SeccompPolicy == nil) != (s.Linux.Seccomp == nil) {
			t.Errorf("%s: %v", name, c)
		}
	}
	NRIContainer(&specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{}}, NRIState{})
	NRIPod(Pod{}, true, "", nil)
}

func TestFromNRI(t *testing.T) {
	w := newWorld()
	w.host.Swap = false
	r, err := FromNRI(w.host, &api.LinuxResources{
		Memory: &api.LinuxMemory{Limit: api.Int64(5), Swap: api.Int64(6)}, Pids: &api.LinuxPids{Limit: 7}, HugepageLimits: []*api.HugepageLimit{{PageSize: "2MB", Limit: 8}},
	})
	if err != nil || *r.Memory.Limit != 5 || r.Memory.Swap != nil || *r.Pids.Limit != 7 || r.HugepageLimits[0] != (specs.LinuxHugepageLimit{Pagesize: "2MB", Limit: 8}) {
		t.Errorf("%+v, %v", r, err)
	}
}

func FuzzAdjust(f *testing.F) {
	a := &api.ContainerAdjustment{}
	a.AddMount(&api.Mount{Destination: "/a", Options: []string{"rslave"}})
	a.AddDevice(&api.LinuxDevice{Path: "/dev/x"})
	a.SetLinuxSeccompPolicy(&api.LinuxSeccomp{DefaultAction: "x"})
	a.AddLinuxNetDevice("e", &api.LinuxNetDevice{})
	seed, err := proto.Marshal(a)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, b []byte) {
		a := &api.ContainerAdjustment{}
		if proto.Unmarshal(b, a) != nil {
			return
		}
		w := newWorld()
		s, err := w.spec()
		if err != nil {
			t.Fatal(err)
		}
		if Adjust(w.host, w.h, s, a) == nil {
			NRIContainer(s, NRIState{Config: w.c.Config})
			if _, err := json.Marshal(s); err != nil {
				t.Errorf("what comes out is no spec: %v", err)
			}
		}
	})
}
