package podspec

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/host/facts"
	"github.com/berthd/berth/host/userdb"
)

var update = flag.Bool("update", false, "write the golden files anew")

// testHost is a machine that never changes: everything is there but
// CAP_SYS_RESOURCE.
func testHost() Host {
	dev := func(p, typ string, major, minor int64) specs.LinuxDevice {
		mode, zero := os.FileMode(0o660), uint32(0)
		return specs.LinuxDevice{Path: p, Type: typ, Major: major, Minor: minor, FileMode: &mode, UID: &zero, GID: &zero}
	}
	all := []specs.LinuxDevice{dev("/dev/fuse", "c", 10, 229), dev("/dev/snd/pcm0", "c", 116, 2), dev("/dev/snd/seq", "c", 116, 1), dev("/dev/vda", "b", 252, 0)}
	var caps []string
	for _, c := range facts.CapNames() {
		if c != "CAP_SYS_RESOURCE" {
			caps = append(caps, c)
		}
	}
	return Host{
		Hostname: "node-1", Caps: caps, HardNOFILE: 4096, Hugetlb: true, HugepageSize: []string{"1GB", "2MB"}, Swap: true, Seccomp: true,
		Device: func(p string) (specs.LinuxDevice, error) {
			for _, d := range all {
				if d.Path == p {
					return d, nil
				}
			}
			return specs.LinuxDevice{}, &fs.PathError{Op: "look at", Path: p, Err: fs.ErrNotExist}
		},
		Devices: func(dir string) ([]specs.LinuxDevice, error) {
			var out []specs.LinuxDevice
			for _, d := range all {
				if rel, err := filepath.Rel(dir, d.Path); err == nil && filepath.IsLocal(rel) {
					out = append(out, d)
				}
			}
			return out, nil
		},
		IsDir: func(p string) bool { return p == "/dev/snd" },
		Propagation: func(p string) (facts.Propagation, error) {
			switch p {
			case "/shared":
				return facts.Propagation{Mount: "/shared", Shared: true}, nil
			case "/slave":
				return facts.Propagation{Mount: "/slave", Slave: true}, nil
			case "/private":
				return facts.Propagation{Mount: "/"}, nil
			}
			return facts.Propagation{}, fs.ErrNotExist
		},
		AppArmorProfile: func(n string) (bool, error) { return n == "loaded" || n == defaultArmor, nil },
		CDI: func(s *specs.Spec, dirs, names []string) error {
			for _, n := range names {
				s.Process.Env = append(s.Process.Env, "CDI="+n)
			}
			return nil
		},
	}
}

func testPod() Pod {
	return Pod{
		ID: "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", Name: "web",
		Config: &cri.PodSandboxConfig{
			Metadata:     &cri.PodSandboxMetadata{Name: "web-0", Namespace: "shop", Uid: "1b4e28ba-2fa1-11d2-883f-0016d3cca427"},
			Hostname:     "web",
			LogDirectory: "/var/log/pods/shop_web-0",
			Annotations:  map[string]string{"team.example/owner": "x", "io.kubernetes.cri.sandbox-id": "forged"},
			Linux: &cri.LinuxPodSandboxConfig{
				CgroupParent:    "/kubepods/burstable/pod1",
				SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}},
				Resources:       &cri.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 20000, CpuShares: 204, MemoryLimitInBytes: 1 << 27},
				Overhead:        &cri.LinuxContainerResources{CpuQuota: 5000, CpuShares: 50, MemoryLimitInBytes: 1 << 20},
			},
		},
		Net: "/run/berth/netns/p/net", IPC: "/run/berth/netns/p/ipc", UTS: "/run/berth/netns/p/uts",
		Hosts: "/run/berth/pods/p/hosts", Hostname: "/run/berth/pods/p/hostname", ResolvConf: "/run/berth/pods/p/resolv.conf", Shm: "/run/berth/pods/p/shm",
	}
}

func testContainer() Container {
	return Container{
		ID: "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210", ImageName: "registry.example/app:1",
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "app"},
			Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER},
				MaskedPaths:      []string{"/proc/kcore"}, ReadonlyPaths: []string{"/proc/sys"},
			}},
		},
		Image: ocispec.ImageConfig{Entrypoint: []string{"/app"}, Cmd: []string{"serve"}, Env: []string{"PATH=/app:/bin", "MODE=image"}, WorkingDir: "/srv"},
		User:  userdb.User{UID: 1000, GID: 1000, Groups: []uint32{1000, 50000}},
	}
}

func testHandler() Handler {
	return Handler{Settings: DefaultSettings(), IDMap: true, RecursiveReadOnly: true}
}

// world is all that a spec is made of.
type world struct {
	host Host
	h    Handler
	pod  Pod
	c    Container
}

func newWorld() *world { return &world{testHost(), testHandler(), testPod(), testContainer()} }

func (w *world) sec() *cri.LinuxContainerSecurityContext { return w.c.Config.Linux.SecurityContext }

func (w *world) spec() (*specs.Spec, error) { return ForContainer(w.host, w.h, w.pod, w.c) }

// goldens are whole specs: each file is read when it changes.
var goldens = map[string]func(*world){
	"plain": func(*world) {},
	"full": func(w *world) {
		c := w.c.Config
		c.Command, c.Args, c.WorkingDir, c.Tty = []string{"/bin/sh"}, []string{"-c", "true"}, "/tmp", true
		c.Envs = []*cri.KeyValue{{Key: "MODE", Value: []byte("config")}, {Key: "A", Value: []byte("b=c")}}
		c.Annotations = map[string]string{"app.example/tier": "1", "other/x": "no", "io.kubernetes.cri.rdt-class": ""}
		c.Mounts = []*cri.Mount{
			{ContainerPath: "/data/deep/er", HostPath: "/h/deep"}, {ContainerPath: "/data", HostPath: "/h/data", Readonly: true},
			{ContainerPath: "/etc/hosts", HostPath: "/var/lib/kubelet/hosts"}, {ContainerPath: "/dev/termination-log", HostPath: "/var/lib/kubelet/term"},
			{ContainerPath: "/img", Image: &cri.ImageSpec{Image: "sha256:1"}, Readonly: true},
			{ContainerPath: "/ro", HostPath: "/h/ro", Readonly: true, RecursiveReadOnly: true},
			{ContainerPath: "/in", HostPath: "/slave", Propagation: cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
			{ContainerPath: "/both", HostPath: "/shared", Propagation: cri.MountPropagation_PROPAGATION_BIDIRECTIONAL},
			{ContainerPath: "/opts", HostPath: "/h/opts", MountOptions: []string{"noexec", "nodev", "nosuid"}},
			{ContainerPath: "/mapped", HostPath: "/h/mapped", UidMappings: []*cri.IDMapping{{HostId: 65536, Length: 65536}}, GidMappings: []*cri.IDMapping{{HostId: 65536, Length: 65536}}},
			{ContainerPath: "/dev/mqueue", HostPath: "/h/mqueue"},
		}
		c.Devices = []*cri.Device{{HostPath: "/dev/fuse", ContainerPath: "/dev/fuse", Permissions: "rw"}, {HostPath: "/dev/snd", ContainerPath: "/dev/sound", Permissions: "r"}}
		c.CDIDevices = []*cri.CDIDevice{{Name: "vendor.com/gpu=0"}}
		c.Linux.Resources = &cri.LinuxContainerResources{
			CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, CpusetCpus: "0-1", CpusetMems: "0", MemoryLimitInBytes: 1 << 26, OomScoreAdj: 937,
			HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 1 << 22}},
		}
		w.sec().NoNewPrivs, w.sec().ReadonlyRootfs = true, true
		w.sec().Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "/p.json"}
		w.sec().Capabilities = &cri.Capability{AddCapabilities: []string{"NET_ADMIN"}, DropCapabilities: []string{"MKNOD"}, AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}}
		w.c.Seccomp = []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["sethostname"],"action":"SCMP_ACT_ERRNO"}]}`)
		w.c.Volumes = map[string]string{"/vol": "/v/1", "/data": "/v/2"}
		w.c.Sources = map[string]string{"/img": "/m/1"}
		w.h.PodAnnotations, w.h.ContainerAnnotations = []string{"team.example/*"}, []string{"app.example/*"}
		w.h.Settings.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1 << 20, Soft: 1 << 10}}
	},
	"privileged": func(w *world) {
		w.pod.Config.Linux.SecurityContext.Privileged = true
		w.sec().Privileged = true
		w.sec().Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
	},
	"userns": func(w *world) {
		w.pod.User = "/run/berth/netns/p/user"
		w.pod.Config.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &cri.UserNamespace{
			Mode: cri.NamespaceMode_POD, Uids: []*cri.IDMapping{{HostId: 131072, Length: 65536}}, Gids: []*cri.IDMapping{{HostId: 131072, Length: 65536}},
		}
	},
	"host": func(w *world) {
		o := &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_NODE, Ipc: cri.NamespaceMode_NODE}
		w.pod.Config.Linux.SecurityContext.NamespaceOptions, w.sec().NamespaceOptions = o, o
		w.pod.Net, w.pod.IPC, w.pod.UTS, w.pod.Shm, w.pod.Name = "", "", "", "/dev/shm", ""
	},
	"unified": func(w *world) {
		w.host.Cgroup2, w.h.SystemdCgroup, w.h.CgroupWritable = true, true, true
		w.pod.Config.Linux.CgroupParent = "/kubepods.slice/kubepods-pod1.slice"
		w.c.Config.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 1 << 26, MemorySwapLimitInBytes: 1 << 27, Unified: map[string]string{"memory.high": "60000000"}}
	},
}

func TestGolden(t *testing.T) {
	for name, change := range goldens {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			change(w)
			s, err := w.spec()
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name, s)
		})
	}
}

func TestGoldenSandbox(t *testing.T) {
	w := newWorld()
	w.h.PodAnnotations = []string{"team.example/*"}
	s, err := ForSandbox(w.host, w.h, w.pod, []string{"/berth-shim", "hold"})
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "sandbox", s)
}

func golden(t *testing.T, name string, s *specs.Spec) {
	t.Helper()
	if s.Linux.Seccomp != nil && len(s.Linux.Seccomp.Syscalls) > 3 {
		s.Linux.Seccomp.Syscalls = s.Linux.Seccomp.Syscalls[:0] // the default profile is its authors' matter
	}
	got, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	file := filepath.Join("testdata", name+".json")
	if *update {
		if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(file, got, 0o644)); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not what it was; look at it with -update and git diff. Now:\n%s", file, got)
	}
}
