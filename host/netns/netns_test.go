package netns

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
)

// newBase is a directory for sets, with the proof at the end that nothing is left.
func newBase(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "berth-netns-")
	if err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(dir, "netns")
	t.Cleanup(func() {
		sets, _ := Sets(base)
		for _, s := range sets {
			if err := Remove(context.Background(), s); err != nil {
				t.Error(err)
			}
		}
		if m := mountsBelow(t, dir); len(m) > 0 {
			t.Errorf("mounts are left: %v", m)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return base
}

func mountsBelow(t *testing.T, dir string) []string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, l := range strings.Split(string(data), "\n") {
		if strings.Contains(l, " "+dir) {
			out = append(out, l)
		}
	}
	return out
}

func link(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}

func nsenter(t *testing.T, flags string, args ...string) string {
	t.Helper()
	out, err := exec.Command("nsenter", append(strings.Fields(flags), args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("nsenter %s %v: %v\n%s", flags, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestMakeAndRemove(t *testing.T) {
	base, ctx := newBase(t), context.Background()
	dir := filepath.Join(base, "pod1")
	s, err := Make(ctx, dir, Options{
		Net: true, IPC: true, UTS: true, Hostname: "one",
		Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "7", "kernel.shm_rmid_forced": "1", "net/ipv4/conf/lo/forwarding": "1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if s != (Set{Net: dir + "/net", IPC: dir + "/ipc", UTS: dir + "/uts"}) || s != Open(dir) {
		t.Fatalf("set is %+v, opened %+v", s, Open(dir))
	}
	for _, c := range []struct{ flags, cmd, want string }{
		{"--uts=" + s.UTS, "hostname", "one"},
		{"--net=" + s.Net, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start", "7"},
		{"--ipc=" + s.IPC, "cat /proc/sys/kernel/shm_rmid_forced", "1"},
		{"--net=" + s.Net, "cat /proc/sys/net/ipv4/conf/lo/forwarding", "1"},
	} {
		if got := nsenter(t, c.flags, strings.Fields(c.cmd)...); c.want != "" && got != c.want {
			t.Errorf("%s: %q, want %q", c.cmd, got, c.want)
		}
	}
	var l net.Listener
	if err = In(s.Net, func() error { l, err = net.Listen("tcp", "127.0.0.1:0"); return err }); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := Dial(ctx, s.Net, "tcp", l.Addr().String())
	if err != nil {
		t.Fatalf("over the loopback: %v", err)
	}
	c.Close()
	nsenter(t, "--net="+s.Net, "ip", "link", "add", "va", "type", "veth", "peer", "name", "vb")
	nsenter(t, "--net="+s.Net, "ip", "link", "set", "va", "up")
	nsenter(t, "--net="+s.Net, "ip", "link", "set", "vb", "up")
	all, err := Counters(s.Net)
	if err != nil || len(all) != 2 || all[1].Name != "va" && all[0].Name != "va" {
		t.Errorf("counters: %+v, %v", all, err)
	}
	if err := Sysctl(s.Net, map[string]string{"net.ipv4.conf.lo.forwarding": "0"}); err != nil {
		t.Error(err)
	}
	if _, err := Make(ctx, dir, Options{Net: true}); !errs.Is(err, errs.AlreadyExists) {
		t.Errorf("a second Make: %v", err)
	}
	for range 2 {
		if err := Remove(ctx, dir); err != nil {
			t.Fatal(err)
		}
	}
	if (Open(dir) != Set{}) {
		t.Error("pins are left")
	}
}

func TestNoThreadStaysAway(t *testing.T) {
	base, ctx := newBase(t), context.Background()
	want := link(t, "/proc/self/ns/net")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			dir := filepath.Join(base, fmt.Sprint("p", i))
			s, err := Make(ctx, dir, Options{Net: true, IPC: true, UTS: true})
			if err == nil {
				err = In(s.Net, func() error { return nil })
			}
			if err == nil && i%2 == 0 {
				err = Remove(ctx, dir)
			}
			if err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	runtime.GC()
	all, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		var st unix.Stat_t
		if unix.Stat("/proc/self/task/"+e.Name()+"/ns/net", &st) == nil && fmt.Sprintf("%d:%d", st.Dev, st.Ino) != want {
			t.Errorf("thread %s is in a foreign network namespace", e.Name())
		}
	}
	if host, _ := os.Hostname(); host == "one" {
		t.Error("the host's name was changed")
	}
}

func TestUserNamespaceOwnsTheOthers(t *testing.T) {
	base, ctx := newBase(t), context.Background()
	dir := filepath.Join(base, "pod")
	ids := []Mapping{{0, 1 << 20, 65536}}
	s, err := Make(ctx, dir, Options{
		Net: true, IPC: true, UTS: true, Hostname: "mapped", Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"},
		User: &User{UIDs: ids, GIDs: ids, Hold: []string{"sleep", "100"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	user := link(t, s.User)
	for _, p := range []string{s.Net, s.IPC, s.UTS} {
		f, err := os.Open(p)
		if err != nil {
			t.Fatal(err)
		}
		fd, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_USERNS)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		if got := link(t, fmt.Sprintf("/proc/self/fd/%d", fd)); got != user {
			t.Errorf("%s is owned by %s, not by %s", p, got, user)
		}
		unix.Close(fd)
	}
	if got := nsenter(t, "--user="+s.User+" --uts="+s.UTS+" --net="+s.Net+" -S 0 -G 0", "sh", "-c", "hostname; cat /proc/self/uid_map"); strings.Join(strings.Fields(got), " ") != "mapped 0 1048576 65536" {
		t.Errorf("inside: %q", got)
	}
	if err := In(s.Net, func() error { return linkUp("lo") }); err != nil {
		t.Error(err)
	}
	_, err = Make(ctx, filepath.Join(base, "bad"), Options{Net: true, User: &User{UIDs: ids, GIDs: ids, Hold: []string{"/no/such"}}})
	if err == nil || !strings.Contains(err.Error(), "/no/such") {
		t.Errorf("a program that is missing: %v", err)
	}
}

// TestOwnedSysctls sets variables of the kinds of namespaces that a user namespace
// owns; those of IPC take only its own root. The program is one that ends with its
// input.
func TestOwnedSysctls(t *testing.T) {
	base, ctx := newBase(t), context.Background()
	ids := []Mapping{{0, 1 << 20, 65536}}
	want := map[string]string{"kernel.shm_rmid_forced": "1", "fs.mqueue.msg_max": "100", "net.ipv4.ip_forward": "1", "kernel.domainname": "there"}
	for i := range 20 {
		dir := filepath.Join(base, fmt.Sprint(i))
		s, err := Make(ctx, dir, Options{Net: true, IPC: true, UTS: true, Sysctls: want, User: &User{UIDs: ids, GIDs: ids, Hold: []string{"cat"}}})
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			got := nsenter(t, "--user="+s.User+" --uts="+s.UTS+" --net="+s.Net+" --ipc="+s.IPC+" -S 0 -G 0", "sh", "-c",
				"cd /proc/sys; cat kernel/shm_rmid_forced fs/mqueue/msg_max net/ipv4/ip_forward kernel/domainname")
			if strings.Join(strings.Fields(got), " ") != "1 100 1 there" {
				t.Errorf("inside: %q", got)
			}
		}
		if err := Remove(ctx, dir); err != nil {
			t.Fatal(err)
		}
	}
	for k, v := range map[string]string{"kernel/shm_rmid_forced": "0", "kernel/domainname": ""} {
		if b, err := os.ReadFile("/proc/sys/" + k); err != nil || v != "" && strings.TrimSpace(string(b)) != v || strings.Contains(string(b), "there") {
			t.Errorf("the host's %s is %q, %v", k, b, err)
		}
	}
}

func TestSharedParentGetsAPrivateBase(t *testing.T) {
	base, ctx := newBase(t), context.Background()
	top := filepath.Dir(base)
	if err := unix.Mount("tmpfs", top, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(top, unix.MNT_DETACH) })
	if err := unix.Mount("", top, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"a", "b"} {
		if _, err := Make(ctx, filepath.Join(base, n), Options{Net: true}); err != nil {
			t.Fatal(err)
		}
	}
	if m := mountsBelow(t, base); len(m) != 3 || strings.Contains(m[0]+m[1]+m[2], "shared:") {
		t.Errorf("want one private mount and two pins on it: %q", m)
	}
	for _, n := range []string{"a", "b"} {
		if err := Remove(ctx, filepath.Join(base, n)); err != nil {
			t.Fatal(err)
		}
	}
	if m := mountsBelow(t, base); len(m) != 0 {
		t.Errorf("left: %q", m)
	}
}

// Plugins in containers of their own find a pod's namespace in a directory that is
// mounted there: the pin must appear in it, and go.
func TestNetworkNamespaceElsewhere(t *testing.T) {
	base, ctx := newBase(t), context.Background()
	nets := filepath.Join(filepath.Dir(base), "nets")
	t.Cleanup(func() { _ = unix.Unmount(nets, unix.MNT_DETACH) })
	if err := os.MkdirAll(nets, 0o755); err != nil {
		t.Fatal(err)
	}
	first := filepath.Join(base, "first")
	if _, err := Make(ctx, first, Options{Net: true, NetAt: filepath.Join(nets, "first")}); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unshare", "-m", "--propagation", "slave", "sh", "-c", "echo; read x")
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { in.Close(); _ = cmd.Wait() }()
	_, _ = out.Read(make([]byte, 1))
	sees := func(name string) bool {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", cmd.Process.Pid))
		return err == nil && strings.Contains(string(data), filepath.Join(nets, name)+" ")
	}
	dir := filepath.Join(base, "pod")
	s, err := Make(ctx, dir, Options{Net: true, UTS: true, NetAt: filepath.Join(nets, "pod")})
	if err != nil {
		t.Fatal(err)
	}
	if s.Net != filepath.Join(nets, "pod") || s.UTS != filepath.Join(dir, "uts") || Open(dir) != s {
		t.Errorf("%+v, opened %+v", s, Open(dir))
	}
	if !sees("first") || !sees("pod") {
		t.Error("the pin does not appear in the other mount namespace")
	}
	for range 2 {
		if err := Remove(ctx, dir); err != nil {
			t.Fatal(err)
		}
	}
	if sees("pod") || (Open(dir) != Set{}) {
		t.Error("the pin is left")
	}
	// As a Make that died leaves it: a link that leads nowhere.
	half := filepath.Join(base, "half")
	if err := os.Mkdir(half, 0o711); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(nets, "half"), filepath.Join(half, "net")); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{half, first} {
		if err := Remove(ctx, d); err != nil {
			t.Fatal(err)
		}
	}
	if left, _ := os.ReadDir(nets); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// A mount namespace made while a pod lives copies its pins; the pod's end must end
// them there too.
func TestCopiesInOtherMountNamespacesEnd(t *testing.T) {
	base, ctx := newBase(t), context.Background()
	dir := filepath.Join(base, "pod")
	s, err := Make(ctx, dir, Options{Net: true})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unshare", "-m", "--propagation", "private", "sh", "-c", "echo; read x")
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { in.Close(); _ = cmd.Wait() }()
	_, _ = out.Read(make([]byte, 1))
	table := fmt.Sprintf("/proc/%d/mountinfo", cmd.Process.Pid)
	if data, _ := os.ReadFile(table); !strings.Contains(string(data), s.Net) {
		t.Fatal("the other namespace has no copy: the test shows nothing")
	}
	if err := Remove(ctx, dir); err != nil {
		t.Fatal(err)
	}
	if data, _ := os.ReadFile(table); strings.Contains(string(data), s.Net) {
		t.Error("the copy holds the namespace")
	}
}

func TestSysctlNames(t *testing.T) {
	for key, want := range map[string]string{
		"net.ipv4.conf.eth0.rp_filter": "eth0", "net.ipv4.conf.all.rp_filter": "", "net/ipv6/conf/eth0.5/accept_ra": "eth0.5",
		"net.ipv6.neigh.eth0/7.retrans_time": "eth0.7", "net.ipv4.ip_forward": "", "kernel.sem": "", "net.ipv4.conf.lo.forwarding": "",
	} {
		if got := SysctlInterface(key); got != want {
			t.Errorf("%s: interface %q, want %q", key, got, want)
		}
	}
	o := Options{Net: true}
	for _, bad := range []string{"kernel.panic", "net", "net..x", "net/../kernel/panic", "kernel.sem", "vm.swappiness", "", "net.ipv4.\x00"} {
		if err := o.owns(bad); !errs.Is(err, errs.InvalidArgument) {
			t.Errorf("%q is let through: %v", bad, err)
		}
	}
	if err := setAll(map[string]string{"net.no.such": "1"}); !errs.Is(err, errs.InvalidArgument) {
		t.Error(err)
	}
}

func TestFailureLeavesNothingThatRemoveCannot(t *testing.T) {
	base, ctx := newBase(t), context.Background()
	dir := filepath.Join(base, "pod")
	if _, err := Make(ctx, dir, Options{Net: true, UTS: true, Sysctls: map[string]string{"net.ipv4.ip_forward": "banana"}}); err == nil {
		t.Fatal("a bad value was taken")
	}
	if err := Remove(ctx, dir); err != nil {
		t.Fatal(err)
	}
	if left, _ := Sets(base); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func BenchmarkMakeRemove(b *testing.B) {
	dir := b.TempDir()
	for i := range b.N {
		d := filepath.Join(dir, "netns", fmt.Sprint(i))
		if _, err := Make(context.Background(), d, Options{Net: true, IPC: true, UTS: true, Hostname: "x"}); err != nil {
			b.Fatal(err)
		}
		if err := Remove(context.Background(), d); err != nil {
			b.Fatal(err)
		}
	}
}

func TestCountersOfALine(t *testing.T) {
	text := "Inter-|   Receive  |  Transmit\n face |bytes\n    lo: 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9\n  eth0:   1 2 3 4 5 6 7 8 10 20 30 40 50 60 70 80\n"
	got, err := counters([]byte(text))
	want := Counter{Name: "eth0", RxBytes: 1, RxPackets: 2, RxErrors: 3, RxDropped: 4, TxBytes: 10, TxPackets: 20, TxErrors: 30, TxDropped: 40}
	if err != nil || len(got) != 1 || got[0] != want {
		t.Errorf("%+v, %v", got, err)
	}
}
