package podspec

import (
	"math"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/base/errs"
)

func i64(n int64) *cri.Int64Value { return &cri.Int64Value{Value: n} }

// TestRefused asks for what cannot be had: each is an error that says why, of the
// right kind, never a container with less than was asked for.
func TestRefused(t *testing.T) {
	ids := func(container, host, n uint32) []*cri.IDMapping {
		return []*cri.IDMapping{{ContainerId: container, HostId: host, Length: n}}
	}
	userns := func(w *world, mode cri.NamespaceMode, u, g []*cri.IDMapping) {
		w.pod.Config.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Mode: mode, Uids: u, Gids: g}
	}
	mount := func(w *world, m *cri.Mount) { w.c.Config.Mounts = []*cri.Mount{m} }
	for _, c := range []struct {
		name   string
		change func(*world)
		kind   error
		text   string
	}{
		{"no command", func(w *world) { w.c.Image = ocispec.ImageConfig{} }, errs.InvalidArgument, "neither the config"},
		{"empty command", func(w *world) { w.c.Config.Command = []string{""} }, errs.InvalidArgument, "empty string"},
		{"zero in argument", func(w *world) { w.c.Config.Args = []string{"a\x00b"} }, errs.InvalidArgument, "zero byte"},
		{"cwd in fds", func(w *world) { w.c.Config.WorkingDir = "/x/../proc/self/fd/7" }, errs.InvalidArgument, "open file"},
		{"cwd of image in fds", func(w *world) { w.c.Image.WorkingDir = "/proc/1/root/etc" }, errs.InvalidArgument, "open file"},
		{"env without name", func(w *world) { w.c.Config.Envs = []*cri.KeyValue{{Value: []byte("x")}} }, errs.InvalidArgument, "name"},
		{"env with =", func(w *world) { w.c.Config.Envs = []*cri.KeyValue{{Key: "a=b"}} }, errs.InvalidArgument, "no ="},
		{"privileged in another pod", func(w *world) { w.sec().Privileged = true }, errs.InvalidArgument, "privileged"},
		{"unknown capability", func(w *world) { w.sec().Capabilities = &cri.Capability{AddCapabilities: []string{"FLY"}} }, errs.InvalidArgument, "FLY"},
		{"unknown dropped", func(w *world) { w.sec().Capabilities = &cri.Capability{DropCapabilities: []string{"FLY"}} }, errs.InvalidArgument, "FLY"},
		{"capability we lack", func(w *world) {
			w.sec().Capabilities = &cri.Capability{AddCapabilities: []string{"SYS_RESOURCE"}}
		}, errs.InvalidArgument, "daemon does not have it"},
		{"seccomp empty", func(w *world) {
			w.sec().Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "/p"}
		}, errs.InvalidArgument, "empty"},
		{"seccomp {}", func(w *world) {
			w.sec().Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "/p"}
			w.c.Seccomp = []byte("{}")
		}, errs.InvalidArgument, "defaultAction"},
		{"seccomp no JSON", func(w *world) {
			w.sec().Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "/p"}
			w.c.Seccomp = []byte("allow")
		}, errs.InvalidArgument, "not valid"},
		{"seccomp without file", func(w *world) {
			w.sec().Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost}
		}, errs.InvalidArgument, "localhost_ref"},
		{"seccomp type", func(w *world) { w.sec().Seccomp = &cri.SecurityProfile{ProfileType: 9} }, errs.InvalidArgument, "9"},
		{"seccomp without kernel", func(w *world) {
			w.host.Seccomp = false
			w.sec().Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "/p"}
		}, errs.FailedPrecondition, "no seccomp"},
		{"old seccomp word", func(w *world) { w.sec().SeccompProfilePath = "nonsense" }, errs.InvalidArgument, "nonsense"},
		{"apparmor here", func(w *world) {
			w.sec().Apparmor = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "loaded"}
		}, errs.FailedPrecondition, "not enabled"},
		{"apparmor not loaded", func(w *world) {
			w.host.AppArmor = true
			w.sec().ApparmorProfile = "localhost/other"
		}, errs.FailedPrecondition, "not loaded"},
		{"selinux", func(w *world) { w.sec().SelinuxOptions = &cri.SELinuxOption{Type: "a:b"} }, errs.InvalidArgument, "label"},
		{"mount on /", func(w *world) { mount(w, &cri.Mount{ContainerPath: "/x/..", HostPath: "/h"}) }, errs.InvalidArgument, "nothing can"},
		{"mount on /proc", func(w *world) { mount(w, &cri.Mount{ContainerPath: "/proc/", HostPath: "/h"}) }, errs.InvalidArgument, "nothing can"},
		{"mount nowhere", func(w *world) { mount(w, &cri.Mount{HostPath: "/h"}) }, errs.InvalidArgument, "container_path"},
		{"mount of nothing", func(w *world) { mount(w, &cri.Mount{ContainerPath: "/x"}) }, errs.InvalidArgument, "host_path"},
		{"mount relative", func(w *world) { mount(w, &cri.Mount{ContainerPath: "/x", HostPath: "a"}) }, errs.InvalidArgument, "absolute"},
		{"rro without ro", func(w *world) { mount(w, &cri.Mount{ContainerPath: "/x", HostPath: "/h", RecursiveReadOnly: true}) }, errs.InvalidArgument, "needs readonly"},
		{"rro with propagation", func(w *world) {
			mount(w, &cri.Mount{ContainerPath: "/x", HostPath: "/shared", Readonly: true, RecursiveReadOnly: true, Propagation: cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER})
		}, errs.InvalidArgument, "private"},
		{"rro unsupported", func(w *world) {
			w.h.RecursiveReadOnly = false
			mount(w, &cri.Mount{ContainerPath: "/x", HostPath: "/h", Readonly: true, RecursiveReadOnly: true})
		}, errs.FailedPrecondition, "cannot do it"},
		{"rshared on private", func(w *world) {
			mount(w, &cri.Mount{ContainerPath: "/x", HostPath: "/private", Propagation: cri.MountPropagation_PROPAGATION_BIDIRECTIONAL})
		}, errs.FailedPrecondition, "not a shared mount"},
		{"rshared on slave", func(w *world) {
			mount(w, &cri.Mount{ContainerPath: "/x", HostPath: "/slave", Propagation: cri.MountPropagation_PROPAGATION_BIDIRECTIONAL})
		}, errs.FailedPrecondition, "not a shared mount"},
		{"rslave on private", func(w *world) {
			mount(w, &cri.Mount{ContainerPath: "/x", HostPath: "/private", Propagation: cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER})
		}, errs.FailedPrecondition, "neither"},
		{"propagation of nothing", func(w *world) {
			mount(w, &cri.Mount{ContainerPath: "/x", HostPath: "/gone", Propagation: cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER})
		}, errs.InvalidArgument, "propagation"},
		{"propagation number", func(w *world) { mount(w, &cri.Mount{ContainerPath: "/x", HostPath: "/h", Propagation: 7}) }, errs.InvalidArgument, "7"},
		{"mount option", func(w *world) {
			mount(w, &cri.Mount{ContainerPath: "/x", HostPath: "/h", MountOptions: []string{"rshared"}})
		}, errs.InvalidArgument, "rshared"},
		{"image mount writable", func(w *world) {
			mount(w, &cri.Mount{ContainerPath: "/x", Image: &cri.ImageSpec{Image: "i"}})
			w.c.Sources = map[string]string{"/x": "/m"}
		}, errs.InvalidArgument, "readonly"},
		{"image not mounted", func(w *world) {
			mount(w, &cri.Mount{ContainerPath: "/x", Image: &cri.ImageSpec{Image: "i"}, Readonly: true})
		}, errs.InvalidArgument, "not mounted"},
		{"idmap unsupported", func(w *world) {
			w.h.IDMap = false
			mount(w, &cri.Mount{ContainerPath: "/x", HostPath: "/h", UidMappings: ids(0, 1, 2)})
		}, errs.FailedPrecondition, "map the ids"},
		{"volume at /proc", func(w *world) { w.c.Volumes = map[string]string{"/x/../proc/": "/v"} }, errs.InvalidArgument, "volume at /proc"},
		{"volume in /proc", func(w *world) { w.c.Volumes = map[string]string{"/proc/self": "/v"} }, errs.InvalidArgument, "volume at /proc/self"},
		{"volume at /sys", func(w *world) { w.c.Volumes = map[string]string{"sys": "/v"} }, errs.InvalidArgument, "volume at /sys"},
		{"volume at /", func(w *world) { w.c.Volumes = map[string]string{"..": "/v"} }, errs.InvalidArgument, "volume at /"},
		{"device missing", func(w *world) { w.c.Config.Devices = []*cri.Device{{HostPath: "/dev/none"}} }, errs.InvalidArgument, "/dev/none"},
		{"device permissions", func(w *world) { w.c.Config.Devices = []*cri.Device{{HostPath: "/dev/fuse", Permissions: "rx"}} }, errs.InvalidArgument, "rx"},
		{"device relative", func(w *world) { w.c.Config.Devices = []*cri.Device{{HostPath: "fuse"}} }, errs.InvalidArgument, "absolute"},
		{"cdi disabled", func(w *world) {
			w.h.Settings.CDI = false
			w.c.Config.CDIDevices = []*cri.CDIDevice{{Name: "v.com/c=d"}}
		}, errs.FailedPrecondition, "enable_cdi"},
		{"cdi annotation", func(w *world) { w.c.Config.Annotations = map[string]string{"cdi.k8s.io/x": "nonsense"} }, errs.InvalidArgument, "CDI"},
		{"userns TARGET", func(w *world) { userns(w, cri.NamespaceMode_TARGET, nil, nil) }, errs.InvalidArgument, "TARGET"},
		{"userns CONTAINER", func(w *world) { userns(w, cri.NamespaceMode_CONTAINER, nil, nil) }, errs.InvalidArgument, "CONTAINER"},
		{"userns two", func(w *world) {
			userns(w, cri.NamespaceMode_POD, append(ids(0, 1, 2), ids(2, 5, 2)...), ids(0, 1, 2))
		}, errs.InvalidArgument, "2 mappings"},
		{"userns none", func(w *world) { userns(w, cri.NamespaceMode_POD, nil, ids(0, 1, 2)) }, errs.InvalidArgument, "0 mappings"},
		{"userns without root", func(w *world) { userns(w, cri.NamespaceMode_POD, ids(1, 1, 2), ids(0, 1, 2)) }, errs.InvalidArgument, "0 must be mapped"},
		{"userns unequal", func(w *world) { userns(w, cri.NamespaceMode_POD, ids(0, 1, 2), ids(0, 1, 3)) }, errs.InvalidArgument, "as many"},
		{"userns empty", func(w *world) { userns(w, cri.NamespaceMode_POD, ids(0, 1, 0), ids(0, 1, 0)) }, errs.InvalidArgument, "maps no id"},
		{"userns overflow", func(w *world) {
			userns(w, cri.NamespaceMode_POD, ids(0, math.MaxUint32, 2), ids(0, 1, 2))
		}, errs.InvalidArgument, "not so many"},
		{"userns of the container only", func(w *world) {
			w.sec().NamespaceOptions.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: ids(0, 1, 2), Gids: ids(0, 1, 2)}
		}, errs.InvalidArgument, "not those of its pod"},
		{"target gone", func(w *world) { w.sec().NamespaceOptions.Pid = cri.NamespaceMode_TARGET }, errs.InvalidArgument, "does not run"},
		{"pid mode", func(w *world) { w.sec().NamespaceOptions.Pid = 9 }, errs.InvalidArgument, "9"},
		{"memory negative", func(w *world) {
			w.c.Config.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: -1}
		}, errs.InvalidArgument, "negative"},
		{"swap below memory", func(w *world) {
			w.c.Config.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 9}
		}, errs.InvalidArgument, "below"},
		{"swap alone", func(w *world) {
			w.c.Config.Linux.Resources = &cri.LinuxContainerResources{MemorySwapLimitInBytes: 9}
		}, errs.InvalidArgument, "needs memory"},
		{"huge page size", func(w *world) {
			w.c.Config.Linux.Resources = &cri.LinuxContainerResources{HugepageLimits: []*cri.HugepageLimit{{PageSize: "3MB"}}}
		}, errs.InvalidArgument, "3MB"},
		{"no hugetlb", func(w *world) {
			w.host.Hugetlb, w.h.Settings.DisableHugetlb, w.h.Settings.TolerateNoHugetlb = false, false, false
			w.c.Config.Linux.Resources = &cri.LinuxContainerResources{HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB"}}}
		}, errs.FailedPrecondition, "hugetlb"},
		{"unified on v1", func(w *world) {
			w.c.Config.Linux.Resources = &cri.LinuxContainerResources{Unified: map[string]string{"memory.high": "1"}}
		}, errs.FailedPrecondition, "unified"},
		{"unified path", func(w *world) {
			w.host.Cgroup2 = true
			w.c.Config.Linux.Resources = &cri.LinuxContainerResources{Unified: map[string]string{"../memory.high": "1"}}
		}, errs.InvalidArgument, "no file"},
		{"cgroup parent out", func(w *world) { w.pod.Config.Linux.CgroupParent = "/a/../../b" }, errs.InvalidArgument, "cgroup_parent"},
		{"cgroup parent no slice", func(w *world) { w.h.SystemdCgroup = true }, errs.InvalidArgument, "same driver"},
		{"rdt", func(w *world) { w.c.Config.Annotations = map[string]string{annotationRDT: "gold"} }, errs.FailedPrecondition, "RDT"},
		{"rdt class", func(w *world) {
			w.host.RDT = func(string) bool { return false }
			w.pod.Config.Annotations = map[string]string{domainRDT + "container.app": "gold"}
		}, errs.InvalidArgument, "does not exist"},
		{"block I/O", func(w *world) { w.pod.Config.Annotations = map[string]string{domainBlockIO + "pod": "slow"} }, errs.FailedPrecondition, "block I/O"},
		{"pattern", func(w *world) {
			w.h.PodAnnotations = []string{"[a"}
		}, errs.InvalidArgument, "pattern"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld()
			c.change(w)
			s, err := w.spec()
			if err == nil {
				t.Fatalf("it gives a spec: %+v", s.Process)
			}
			if !errs.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("the error is %v; want kind %v and %q in it", err, c.kind, c.text)
			}
		})
	}
}

func TestUserAsk(t *testing.T) {
	for _, c := range []struct {
		name  string
		sec   *cri.LinuxContainerSecurityContext
		image string
		want  string // USER:GROUP, or an error's part
	}{
		{"nothing", nil, "", ":"},
		{"image", nil, "www:data", "www:data"},
		{"image overridden", &cri.LinuxContainerSecurityContext{RunAsUser: i64(5)}, "www:data", "5:"},
		{"name", &cri.LinuxContainerSecurityContext{RunAsUsername: "x", RunAsGroup: i64(7)}, "", "x:7"},
		{"group alone", &cri.LinuxContainerSecurityContext{RunAsGroup: i64(7)}, "www", "needs run_as_user"},
		{"both", &cri.LinuxContainerSecurityContext{RunAsUser: i64(5), RunAsUsername: "x"}, "", "only one"},
		{"group too large", &cri.LinuxContainerSecurityContext{SupplementalGroups: []int64{1 << 40}}, "", "supplemental group"},
		{"negative group", &cri.LinuxContainerSecurityContext{SupplementalGroups: []int64{-1}}, "", "supplemental group"},
		{"policy", &cri.LinuxContainerSecurityContext{SupplementalGroupsPolicy: 5}, "", "policy"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ask, err := UserAsk(&cri.ContainerConfig{Linux: &cri.LinuxContainerConfig{SecurityContext: c.sec}}, ocispec.ImageConfig{User: c.image})
			if err != nil {
				if !strings.Contains(err.Error(), c.want) || !errs.Is(err, errs.InvalidArgument) {
					t.Errorf("error %v", err)
				}
				return
			}
			if got := ask.User + ":" + ask.Group; got != c.want {
				t.Errorf("asks for %q, want %q", got, c.want)
			}
		})
	}
}

func TestSysctls(t *testing.T) {
	node, own := cri.NamespaceMode_NODE, cri.NamespaceMode_POD
	for _, c := range []struct {
		key      string
		net, ipc cri.NamespaceMode
		name     string // as it comes out; "" is refused
	}{
		{"net.ipv4.ip_forward", own, own, "net.ipv4.ip_forward"},
		{"net/ipv4/ip_forward", own, own, "net.ipv4.ip_forward"},
		{"net/ipv4/conf/eth0.1/forwarding", own, own, "net.ipv4.conf.eth0/1.forwarding"},
		{"net.ipv4.conf.eth0/1.forwarding", own, own, "net.ipv4.conf.eth0/1.forwarding"},
		{"net.ipv4.ip_forward", node, own, ""},
		{"kernel.shmmax", own, own, "kernel.shmmax"},
		{"kernel.shmmax", own, node, ""},
		{"fs.mqueue.msg_max", own, own, "fs.mqueue.msg_max"},
		{"kernel.domainname", own, own, "kernel.domainname"},
		{"kernel.domainname", node, own, ""},
		{"kernel.hostname", own, own, ""},
		{"vm.swappiness", own, own, ""},
		{"kernel.core_pattern", own, own, ""},
		{"net", own, own, ""},
		{"net.", own, own, ""},
		{"net...kernel.core_pattern", own, own, ""},
		{"net/../kernel/core_pattern", own, own, ""},
		{"net.//.kernel", own, own, ""},
		{"", own, own, ""},
	} {
		cfg := &cri.PodSandboxConfig{Linux: &cri.LinuxPodSandboxConfig{
			Sysctls:         map[string]string{c.key: "1"},
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Network: c.net, Ipc: c.ipc}},
		}}
		got, err := Sysctls(Settings{}, cfg)
		if (err != nil) != (c.name == "") || err == nil && (len(got) != 1 || got[c.name] != "1") {
			t.Errorf("%q (network %s, IPC %s): %v, %v", c.key, c.net, c.ipc, got, err)
		}
	}
	def, err := Sysctls(DefaultSettings(), &cri.PodSandboxConfig{})
	if err != nil || def[sysctlPorts] != "0" || def[sysctlPing] != "0 2147483647" {
		t.Errorf("defaults: %v, %v", def, err)
	}
	w := newWorld()
	goldens["userns"](w)
	if def, err = Sysctls(DefaultSettings(), w.pod.Config); err != nil || def[sysctlPing] != "" || def[sysctlPorts] != "0" {
		t.Errorf("in a user namespace: %v, %v", def, err)
	}
}

func TestStopSignal(t *testing.T) {
	for _, c := range []struct {
		cri   cri.Signal
		image string
		want  int // 0 is an error
	}{
		{0, "", 15}, {0, "SIGQUIT", 3}, {0, "quit", 3}, {0, "9", 9}, {0, "RTMIN+3", 37}, {0, "SIGRTMAX-1", 63}, {0, "RTMIN", 34},
		{0, "65", 0}, {0, "0", 0}, {0, "SIGNONE", 0}, {0, "RTMIN+31", 0}, {0, "RTMIN3", 0}, {0, "RTMAX+1", 0},
		{cri.Signal_SIGNAL_SIGUSR1, "SIGQUIT", 10}, {cri.Signal_SIGNAL_SIGCLD, "", 17}, {cri.Signal_SIGNAL_SIGIOT, "", 6},
		{cri.Signal_SIGNAL_SIGRTMIN, "", 34}, {cri.Signal_SIGNAL_SIGRTMINPLUS15, "", 49}, {cri.Signal_SIGNAL_SIGRTMAXMINUS14, "", 50}, {cri.Signal_SIGNAL_SIGRTMAX, "", 64},
		{66, "", 0}, {-1, "", 0},
	} {
		got, err := StopSignal(&cri.ContainerConfig{StopSignal: c.cri}, c.image)
		if int(got) != c.want || (err != nil) != (c.want == 0) {
			t.Errorf("%s of the config, %q of the image: %d, %v; want %d", c.cri, c.image, got, err, c.want)
		}
	}
	for n := range cri.Signal_name { // every one of the enum is known
		if got, err := StopSignal(&cri.ContainerConfig{StopSignal: cri.Signal(n)}, ""); err != nil || got == 0 {
			t.Errorf("signal %d: %d, %v", n, got, err)
		}
	}
}
