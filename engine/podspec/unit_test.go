package podspec

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestCapabilities(t *testing.T) {
	for _, c := range []struct {
		name string
		ask  *cri.Capability
		has  []string
		not  []string
		n    int
	}{
		{"nothing", nil, []string{"CAP_CHOWN"}, []string{"CAP_SYS_ADMIN"}, len(capsDefault)},
		{"all", &cri.Capability{AddCapabilities: []string{"ALL"}}, []string{"CAP_SYS_ADMIN"}, []string{"CAP_SYS_RESOURCE"}, len(testHost().Caps)},
		{"none", &cri.Capability{DropCapabilities: []string{"all"}}, nil, []string{"CAP_CHOWN"}, 0},
		{"one", &cri.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"cap_net_raw"}}, []string{"CAP_NET_RAW"}, nil, 1},
		{"all but one", &cri.Capability{DropCapabilities: []string{"SYS_ADMIN"}, AddCapabilities: []string{"ALL"}}, nil, []string{"CAP_SYS_ADMIN"}, len(testHost().Caps) - 1},
		{"twice", &cri.Capability{AddCapabilities: []string{"CHOWN", "CAP_CHOWN"}}, nil, nil, len(capsDefault)},
	} {
		w := newWorld()
		w.sec().Capabilities = c.ask
		s, err := w.spec()
		if err != nil {
			t.Fatal(err)
		}
		got := s.Process.Capabilities
		ok := len(got.Bounding) == c.n && slices.Equal(got.Bounding, got.Effective) && slices.Equal(got.Bounding, got.Permitted) && len(got.Inheritable)+len(got.Ambient) == 0
		for _, n := range c.has {
			ok = ok && slices.Contains(got.Bounding, n)
		}
		for _, n := range c.not {
			ok = ok && !slices.Contains(got.Bounding, n)
		}
		if !ok {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

// TestDaemonOOM is a daemon that may not lower the score.
func TestDaemonOOM(t *testing.T) {
	for _, c := range []struct {
		own      int
		lower    bool
		restrict bool
		want     int64
		got      int
	}{
		{0, false, false, -998, 0}, {-999, false, false, -998, -998}, {0, true, false, -998, -998}, {0, true, true, -998, 0},
		{0, false, false, 937, 937}, {100, false, false, 0, 100}, {0, true, false, -5000, -1000}, {0, true, false, 5000, 1000},
	} {
		w := newWorld()
		warned := 0
		w.host.OOMScoreAdj, w.host.LowerOOM, w.h.Settings.RestrictOOMScoreAdj = c.own, c.lower, c.restrict
		w.host.Warn = func(string, string) { warned++ }
		w.c.Config.Linux.Resources = &cri.LinuxContainerResources{OomScoreAdj: c.want}
		s, err := w.spec()
		if err != nil {
			t.Fatal(err)
		}
		if got := *s.Process.OOMScoreAdj; got != c.got || (warned > 0) != (int64(got) > max(c.want, minOOM)) {
			t.Errorf("%+v: %d, %d warnings", c, got, warned)
		}
	}
}

func TestArgs(t *testing.T) {
	for _, c := range []struct{ command, args, entrypoint, cmd, want string }{
		{"", "", "e", "c", "e c"}, {"", "a", "e", "c", "e a"}, {"x", "", "e", "c", "x"}, {"x", "a", "e", "c", "x a"}, {"", "", "", "c", "c"}, {"", "a", "", "c", "a"},
	} {
		w := newWorld()
		w.c.Config.Command, w.c.Config.Args = strings.Fields(c.command), strings.Fields(c.args)
		w.c.Image.Entrypoint, w.c.Image.Cmd = strings.Fields(c.entrypoint), strings.Fields(c.cmd)
		s, err := w.spec()
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(s.Process.Args, " "); got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
}

func TestSeccompSetting(t *testing.T) {
	for _, c := range []struct {
		setting string
		ask     *cri.SecurityProfile
		old     string
		on      bool
		file    string
	}{
		{"", nil, "", false, ""}, {"RuntimeDefault", nil, "", true, ""}, {"runtime/default", nil, "", true, ""}, {"unconfined", nil, "", false, ""},
		{"/p.json", nil, "", true, "/p.json"}, {"", nil, "localhost//p.json", true, "/p.json"}, {"", nil, "docker/default", true, ""},
		{"RuntimeDefault", &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}, "", false, ""},
		{"", &cri.SecurityProfile{}, "unconfined", true, ""},
		{"", &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "localhost//p.json"}, "", true, "/p.json"},
	} {
		w := newWorld()
		w.h.Settings.UnsetSeccomp, w.sec().Seccomp, w.sec().SeccompProfilePath = c.setting, c.ask, c.old
		w.c.Seccomp = []byte(`{"defaultAction":"SCMP_ACT_ERRNO"}`)
		file, err := SeccompFile(w.h.Settings, w.sec())
		if err != nil || file != c.file {
			t.Errorf("%+v: file %q, %v", c, file, err)
		}
		s, err := w.spec()
		if err != nil {
			t.Fatal(err)
		}
		if on := s.Linux.Seccomp != nil; on != c.on {
			t.Errorf("%+v: a filter: %v", c, on)
		}
	}
}

// TestSeccompFollowsCapabilities: what a capability allows, the default profile does
// not take away again.
func TestSeccompFollowsCapabilities(t *testing.T) {
	allows := func(add string) bool {
		w := newWorld()
		w.sec().Seccomp = &cri.SecurityProfile{}
		if add != "" {
			w.sec().Capabilities = &cri.Capability{AddCapabilities: []string{add}}
		}
		s, err := w.spec()
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(s.Linux.Seccomp.Syscalls, func(c specs.LinuxSyscall) bool {
			return c.Action == specs.ActAllow && len(c.Args) == 0 && slices.Contains(c.Names, "mount")
		})
	}
	if allows("") || !allows("SYS_ADMIN") {
		t.Errorf("mount is allowed without SYS_ADMIN: %v, with it: %v", allows(""), allows("SYS_ADMIN"))
	}
}

func TestSELinux(t *testing.T) {
	w := newWorld()
	w.host.SELinux, w.h.Settings.SELinux = true, true
	s, err := w.spec()
	if err != nil {
		t.Fatal(err)
	}
	level := MCS(w.pod.ID, 1024)
	if s.Process.SelinuxLabel != "system_u:system_r:container_t:"+level || s.Linux.MountLabel != "system_u:object_r:container_file_t:"+level {
		t.Errorf("labels %q and %q", s.Process.SelinuxLabel, s.Linux.MountLabel)
	}
	w.sec().SelinuxOptions = &cri.SELinuxOption{User: "u", Role: "r", Type: "t_t", Level: "s0:c1,c2"}
	if s, err = w.spec(); err != nil || s.Process.SelinuxLabel != "u:r:t_t:s0:c1,c2" {
		t.Errorf("label %q, %v", s.Process.SelinuxLabel, err)
	}
	for _, n := range []int{0, 2, 1024} {
		var a, b int
		for _, id := range []string{"a", "b", "c", "d"} {
			m := MCS(id, n)
			if _, err := fmt.Sscanf(m, "s0:c%d,c%d", &a, &b); err != nil || a >= b || b >= max(n, 2) {
				t.Errorf("level %q of %d categories: %v", m, n, err)
			}
		}
	}
}

func TestAppArmor(t *testing.T) {
	w := newWorld()
	w.host.AppArmor = true
	for _, c := range []struct{ ask, want string }{{"localhost/loaded", "loaded"}, {"unconfined", ""}, {"runtime/default", defaultArmor}, {"", defaultArmor}} {
		w.sec().ApparmorProfile = c.ask
		s, err := w.spec()
		if err != nil || s.Process.ApparmorProfile != c.want {
			t.Errorf("%q gives %q, %v", c.ask, s.Process.ApparmorProfile, err)
		}
	}
}

func TestMerge(t *testing.T) {
	w := newWorld()
	w.c.Config.Linux.Resources = &cri.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, MemoryLimitInBytes: 1 << 26}
	s, err := w.spec()
	if err != nil {
		t.Fatal(err)
	}
	r, err := Resources(w.host, w.h, &cri.LinuxContainerResources{CpuQuota: 70000, MemoryLimitInBytes: 1 << 27})
	if err != nil {
		t.Fatal(err)
	}
	devices := len(s.Linux.Resources.Devices)
	Merge(s, r)
	got := s.Linux.Resources
	if *got.CPU.Quota != 70000 || *got.CPU.Shares != 512 || *got.CPU.Period != 100000 || *got.Memory.Limit != 1<<27 || *got.Memory.Swap != 1<<27 || len(got.Devices) != devices {
		t.Errorf("after the update: %+v %+v", got.CPU, got.Memory)
	}
}

func TestSystemdImage(t *testing.T) {
	w := newWorld()
	w.c.Volumes = map[string]string{"/sys/fs/cgroup": "/v", "/data": "/d"}
	s, err := w.spec()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, m := range s.Mounts {
		if m.Destination == "/sys/fs/cgroup" && m.Type == "cgroup" || m.Destination == "/data" && m.Source == "/d" {
			n++
		}
		if m.Source == "/v" {
			t.Errorf("a volume over the cgroups: %v", m)
		}
	}
	if n != 2 {
		t.Errorf("mounts: %v", s.Mounts)
	}
}

func TestMemory(t *testing.T) {
	p := func(n int64) *int64 { return &n }
	for _, c := range []struct {
		limit, swap         int64
		accounted           bool
		wantLimit, wantSwap *int64
	}{
		{0, 0, true, nil, nil}, {10, 0, true, p(10), p(10)}, {10, 20, true, p(10), p(20)}, {10, -1, true, p(10), p(-1)}, {0, -1, true, nil, p(-1)},
		{10, 20, false, p(10), nil},
	} {
		h := testHost()
		h.Swap = c.accounted
		r, err := Resources(h, testHandler(), &cri.LinuxContainerResources{MemoryLimitInBytes: c.limit, MemorySwapLimitInBytes: c.swap})
		if err != nil {
			t.Fatal(err)
		}
		got := r.Memory
		if got == nil {
			got = &specs.LinuxMemory{}
		}
		same := func(a, b *int64) bool { return (a == nil) == (b == nil) && (a == nil || *a == *b) }
		if !same(got.Limit, c.wantLimit) || !same(got.Swap, c.wantSwap) {
			t.Errorf("%+v: %+v", c, got)
		}
	}
}

func FuzzAnnotations(f *testing.F) {
	f.Add("a.example/*", "a.example/x", "1")
	f.Add("[", "io.kubernetes.cri.sandbox-id", "forged")
	f.Add("*", "cdi.k8s.io/x", "v.com/c=d")
	f.Fuzz(func(t *testing.T, pattern, k, v string) {
		w := newWorld()
		w.h.PodAnnotations, w.h.ContainerAnnotations = []string{pattern}, []string{pattern}
		w.c.Config.Annotations, w.pod.Config.Annotations = map[string]string{k: v}, map[string]string{k: v}
		s, err := w.spec()
		if err == nil && (s.Annotations[annotationPodID] != w.pod.ID || s.Annotations[annotationType] != typeContainer) {
			t.Errorf("annotations %v", s.Annotations)
		}
	})
}

func FuzzSignal(f *testing.F) {
	for _, s := range []string{"TERM", "SIGRTMIN+3", "64", "RTMAX-", "-1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := ParseSignal(s); err == nil && (n < 1 || n > rtMax) {
			t.Errorf("%q is %d", s, n)
		}
	})
}
