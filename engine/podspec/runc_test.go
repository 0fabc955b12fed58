package podspec

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/base/id"
	"github.com/berthd/berth/host/blockio"
	"github.com/berthd/berth/host/userdb"
)

// bench is a bundle on the real machine with Debian's static busybox in it.
type bench struct {
	*world
	t      *testing.T
	rootfs string
}

func newBench(t *testing.T) *bench {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root: it runs containers")
	}
	host, err := Probe(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for d := dir; d != "/tmp" && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil { // a user namespace's root must get there
			t.Fatal(err)
		}
	}
	b := &bench{newWorld(), t, filepath.Join(dir, "rootfs")}
	b.host = host
	b.pod.Net, b.pod.IPC, b.pod.UTS, b.pod.Hosts, b.pod.Hostname, b.pod.ResolvConf, b.pod.Shm = "", "", "", "", "", "", ""
	b.pod.Config.Linux.CgroupParent = "/podspec-test-" + id.New(8)
	t.Cleanup(b.removeCgroups)
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "tmp", "srv"} {
		if err := os.MkdirAll(filepath.Join(b.rootfs, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.rootfs, "bin/busybox"), data, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{"sh", "id", "cat", "mount", "touch", "hostname", "ls", "dd", "grep", "unshare"} {
		if err := os.Link(filepath.Join(b.rootfs, "bin/busybox"), filepath.Join(b.rootfs, "bin", a)); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

func (b *bench) removeCgroups() {
	found, _ := filepath.Glob("/sys/fs/cgroup/*" + b.pod.Config.Linux.CgroupParent)
	for _, d := range append(found, "/sys/fs/cgroup"+b.pod.Config.Linux.CgroupParent) {
		if err := os.Remove(d); err != nil && !errors.Is(err, os.ErrNotExist) {
			b.t.Errorf("a cgroup stays: %v", err)
		}
	}
}

// run runs a shell line in a container and returns what it prints.
func (b *bench) run(line string) (string, error) {
	b.t.Helper()
	b.c.ID = id.New(16)
	b.c.Image = ocispec.ImageConfig{}
	b.c.Config.Command = []string{"/bin/sh", "-c", line}
	s, err := b.spec()
	if err != nil {
		return "", err
	}
	bundle := filepath.Dir(b.rootfs)
	text, err := json.Marshal(s)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), text, 0o600); err != nil {
		b.t.Fatal(err)
	}
	cmd := exec.Command("runc", "--root", filepath.Join(bundle, "runc"), "run", "--bundle", bundle, b.c.ID)
	var out, fail bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &fail
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%w: %s", err, fail.String())
	}
	return out.String(), nil
}

func (b *bench) must(line string) string {
	b.t.Helper()
	out, err := b.run(line)
	if err != nil {
		b.t.Fatalf("%s: %v", line, err)
	}
	return out
}

func TestRuncPlain(t *testing.T) {
	b := newBench(t)
	b.c.User = userdb.User{UID: 1000, GID: 1001, Groups: []uint32{1001, 50000}}
	b.sec().Seccomp = &cri.SecurityProfile{}
	b.sec().MaskedPaths = []string{"/bin/dd"}
	b.c.Config.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 32 << 20, CpuShares: 512, OomScoreAdj: -500}
	out := b.must("id; cat /proc/self/oom_score_adj /proc/self/status; [ -s /bin/dd ] || echo masked; ls -d /sys/fs/cgroup; unshare -U true 2>&1; true")
	want := []string{"uid=1000 gid=1001 groups=1001,50000", fmt.Sprintf("\n%d\n", max(-500, b.host.OOMScoreAdj)), "Seccomp:\t2", "/sys/fs/cgroup", "masked", "not permitted", "CapBnd:\t00000000a80425fb"}
	if b.host.LowerOOM {
		want[1] = "\n-500\n"
	}
	for _, w := range want {
		if !strings.Contains(out, w) {
			t.Errorf("the container does not say %q:\n%s", w, out)
		}
	}
}

func TestRuncPrivileged(t *testing.T) {
	b := newBench(t)
	b.pod.Config.Linux.SecurityContext.Privileged, b.sec().Privileged = true, true
	b.c.User = userdb.User{}
	out := b.must("cat /proc/self/status; mount -t tmpfs x /tmp && touch /tmp/a && ls /tmp /dev; echo 0 >/proc/sys/kernel/ns_last_pid && echo writable")
	for _, w := range []string{"Seccomp:\t0", "\na\n", "writable", "random"} {
		if !strings.Contains(out, w) {
			t.Errorf("the container does not say %q:\n%s", w, out)
		}
	}
	mine, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mine)) {
		if strings.HasPrefix(line, "CapBnd") && !strings.Contains(out, line) {
			t.Errorf("it has other capabilities than we: %s", line)
		}
	}
}

func TestRuncUserNamespace(t *testing.T) {
	b := newBench(t)
	const first = 300000
	m := []*cri.IDMapping{{HostId: first, Length: 65536}}
	b.pod.Config.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: m, Gids: m}
	b.c.User = userdb.User{}
	vol := t.TempDir()
	if err := errors.Join(os.WriteFile(filepath.Join(vol, "of-root"), nil, 0o644), os.Chmod(filepath.Dir(vol), 0o755)); err != nil {
		t.Fatal(err)
	}
	b.c.Config.Mounts = []*cri.Mount{{ContainerPath: "/vol", HostPath: vol, UidMappings: m, GidMappings: m}}
	if err := os.Chown(b.rootfs, first, first); err != nil {
		t.Fatal(err)
	}
	out := b.must("id -u; cat /proc/self/uid_map; ls -ln /vol; touch /vol/new")
	if !strings.HasPrefix(out, "0\n") || !strings.Contains(out, fmt.Sprint(first)) || !slices.Contains(strings.Fields(out), "of-root") {
		t.Errorf("it says\n%s", out)
	}
	for line := range strings.Lines(out) {
		if strings.Contains(line, "of-root") && strings.Fields(line)[2] != "0" {
			t.Errorf("root's file is not its root's: %s", line)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(vol, "new"), &st); err != nil || st.Uid != 0 || st.Gid != 0 {
		t.Errorf("its file is not root's on the host: %d:%d, %v", st.Uid, st.Gid, err)
	}
}

func TestRuncReadOnly(t *testing.T) {
	b := newBench(t)
	b.c.User = userdb.User{}
	b.sec().ReadonlyRootfs = true
	b.sec().Capabilities = &cri.Capability{DropCapabilities: []string{"ALL"}}
	b.sec().Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "/p.json"}
	b.c.Seccomp = []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["sethostname"],"action":"SCMP_ACT_KILL_PROCESS"}]}`)
	vol := t.TempDir()
	b.c.Config.Mounts = []*cri.Mount{{ContainerPath: "/vol", HostPath: vol, Readonly: true, RecursiveReadOnly: true}}
	out := b.must("touch /x 2>&1; touch /vol/x 2>&1; cat /proc/self/status; hostname x; echo ended by $?")
	for _, w := range []string{"/x: Read-only", "/vol/x: Read-only", "CapBnd:\t0000000000000000", "Seccomp:\t2", "ended by 159"} {
		if !strings.Contains(out, w) {
			t.Errorf("the container does not say %q:\n%s", w, out)
		}
	}
}

func TestRuncBlockIO(t *testing.T) {
	b := newBench(t)
	dev := filepath.Join(t.TempDir(), "disk")
	found, err := filepath.Glob("/sys/block/*/dev")
	if err != nil || len(found) == 0 {
		t.Fatal("this machine has no disk")
	}
	text, err := os.ReadFile(found[0])
	if err != nil {
		t.Fatal(err)
	}
	var major, minor uint32
	if _, err := fmt.Sscanf(string(text), "%d:%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(dev, unix.S_IFBLK|0o600, int(unix.Mkdev(major, minor))); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "classes.yaml")
	if err := os.WriteFile(file, []byte("Classes: {slow: [{Devices: ["+dev+"], ThrottleReadBps: 7M}]}"), 0o600); err != nil {
		t.Fatal(err)
	}
	classes, err := blockio.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	b.host.BlockIO = classes.Class
	b.pod.Config.Annotations = map[string]string{domainBlockIO + "container.app": "slow"}
	b.c.User = userdb.User{}
	where := "/sys/fs/cgroup/blkio/blkio.throttle.read_bps_device"
	if b.host.Cgroup2 {
		where = "/sys/fs/cgroup/io.max"
	}
	if out := b.must("cat " + where); !strings.Contains(out, fmt.Sprintf("%d:%d ", major, minor)) || !strings.Contains(out, "7000000") {
		t.Errorf("the cgroup says %q", out)
	}
}
