package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/host/cgroup"
	"github.com/berthd/berth/store/snapshot"
	"github.com/berthd/berth/store/snapshot/overlay"
)

func (v *visit) kernel() {
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		release := unix.ByteSliceToString(u.Release[:])
		var major, minor int
		_, _ = fmt.Sscanf(release, "%d.%d", &major, &minor)
		if major < 5 || major == 5 && minor < 4 {
			v.warn("kernel", "use 5.4 or newer; 5.19 and newer have all that berth can use", "%s is old", release)
		} else {
			v.ok("kernel", "%s", release)
		}
	}
	if os.Geteuid() != 0 {
		v.warn("user", "run this as root to see everything", "user %d sees less than the daemon", os.Geteuid())
	}
	v.overlay()
	v.cgroups()
	v.namespaces()
	v.filters()
	v.extras()
}

// overlay tries it, because only that tells.
func (v *visit) overlay() {
	const about = "overlay"
	base := v.Config.Config.Root
	if _, err := os.Stat(base); err != nil {
		base = os.TempDir()
	}
	dir, err := os.MkdirTemp(base, "doctor-")
	if err != nil {
		v.warn(about, "", "it cannot be tried: %v", err)
		return
	}
	defer func() { _ = os.RemoveAll(dir) }() // a probe that left a mount has said so
	d, err := overlay.New(dir, v.Config.Config.Plugins.Overlay.MountOptions...)
	if err != nil {
		do := "put root on ext4 or xfs (with ftype=1), and load the module: modprobe overlay"
		if v.Config.Config.Plugins.Images.Snapshotter == "overlayfs" {
			v.fail(about, do+"; or set the snapshotter to native, which copies", "%v", err)
		} else {
			v.warn(about, do, "%v", err)
		}
		return
	}
	if slices.Contains(d.Capabilities(), snapshot.CapRemapIDs) {
		v.ok(about, "works in %s, with id maps (idmapped mounts)", base)
	} else {
		v.warn(about, "Linux 5.19 or newer can; without it pods with user namespaces copy their images", "works in %s, without id maps", base)
	}
}

func (v *visit) cgroups() {
	const about = "cgroups"
	need := []string{"cpu", "memory", "pids"}
	missing := func(have []string) (out []string) {
		for _, n := range need {
			if !slices.Contains(have, n) {
				out = append(out, n)
			}
		}
		return out
	}
	root := cgroup.System.Root
	if cgroup.System.Unified() {
		data, _ := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
		if m := missing(strings.Fields(string(data))); len(m) > 0 {
			v.fail(about, "give them to us: Delegate=yes in the unit, or cgroup.subtree_control above", "version 2, without %s", strings.Join(m, ", "))
			return
		}
		v.ok(about, "version 2, with %s", strings.TrimSpace(string(data)))
		return
	}
	var have []string
	for _, n := range append(need, "cpuset", "devices", "freezer") {
		if _, err := os.Stat(filepath.Join(root, n)); err == nil {
			have = append(have, n)
		}
	}
	if m := missing(have); len(m) > 0 {
		v.fail(about, "mount them below "+root+", or boot with systemd.unified_cgroup_hierarchy=1", "version 1, without %s", strings.Join(m, ", "))
		return
	}
	v.ok(about, "version 1, with %s; version 2 can do more (memory QoS, pressure, one freeze for all)", strings.Join(have, ", "))
}

func (v *visit) namespaces() {
	n, err := readInt("/proc/sys/user/max_user_namespaces")
	switch {
	case err != nil:
		v.warn("user namespaces", "a kernel with CONFIG_USER_NS", "the kernel has none: %v", err)
	case n == 0:
		v.warn("user namespaces", "sysctl -w user.max_user_namespaces=65536", "forbidden: user.max_user_namespaces is 0")
	default:
		v.ok("user namespaces", "up to %d", n)
	}
	if data, err := os.ReadFile("/proc/sys/kernel/seccomp/actions_avail"); err != nil || !strings.Contains(string(data), "errno") {
		v.warn("seccomp", "a kernel with CONFIG_SECCOMP_FILTER", "there is no filter: containers that ask for RuntimeDefault will not start")
	} else {
		v.ok("seccomp", "%s", strings.TrimSpace(string(data)))
	}
	if !capable(unix.CAP_SYS_RESOURCE) {
		v.warn("capabilities", "give the daemon CAP_SYS_RESOURCE; until then containers get no lower oom_score_adj than it has, and no higher limits",
			"CAP_SYS_RESOURCE is missing here")
	}
	if !capable(unix.CAP_SYS_ADMIN) {
		v.fail("capabilities", "run the daemon as root on the host", "CAP_SYS_ADMIN is missing here: nothing can be mounted")
	}
}

// capable reads our effective capabilities (proc(5)).
func capable(c int) bool {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return true // nothing is known against it
	}
	_, rest, ok := strings.Cut(string(data), "\nCapEff:\t")
	word, _, _ := strings.Cut(rest, "\n")
	set, err := strconv.ParseUint(word, 16, 64)
	return !ok || err != nil || set&(1<<c) != 0
}

func (v *visit) filters() {
	conn, err := nftables.New()
	if err == nil {
		_, err = conn.ListTables()
	}
	if err == nil {
		v.ok("packet filter", "nftables")
	} else {
		v.warn("packet filter", "modprobe nf_tables nft_masq nft_nat", "nftables does not answer (%v): port mappings and masquerading will not work", err)
	}
	if n, err := readInt("/proc/sys/net/ipv4/ip_forward"); err == nil && n == 0 {
		v.warn("forwarding", "sysctl -w net.ipv4.ip_forward=1", "net.ipv4.ip_forward is 0: pods reach only this machine")
	}
}

func (v *visit) extras() {
	if _, err := os.Stat("/dev/fuse"); err != nil {
		v.warn("fuse", "modprobe fuse", "there is no /dev/fuse: lazy and rootless snapshotters need it")
	}
	if _, err := exec.LookPath("criu"); err != nil {
		v.warn("checkpoints", "install criu, if you want checkpoints", "criu is not on PATH")
	} else {
		v.ok("checkpoints", "criu")
	}
	if data, err := os.ReadFile("/sys/module/apparmor/parameters/enabled"); err == nil && strings.HasPrefix(string(data), "Y") {
		v.ok("apparmor", "on")
	}
	if _, err := os.Stat("/sys/fs/selinux/enforce"); err == nil && !v.Config.Config.Plugins.Runtime.SELinux {
		v.warn("selinux", "set enable_selinux in io.containerd.cri.v1.runtime", "the host has SELinux, and pods are not labelled")
	}
}

func (v *visit) limits() {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err == nil && files.Max < 65536 {
		v.warn("open files", "LimitNOFILE=1048576 in the unit", "at most %d here", files.Max)
	}
	if n, err := readInt("/proc/sys/fs/inotify/max_user_instances"); err == nil && n < 128 {
		v.warn("inotify", "sysctl -w fs.inotify.max_user_instances=8192", "fs.inotify.max_user_instances is %d", n)
	}
	if n, err := readInt("/proc/sys/kernel/pid_max"); err == nil && n < 65536 {
		v.warn("processes", "sysctl -w kernel.pid_max=4194304", "kernel.pid_max is %d: a full node has more threads", n)
	}
}

// low is the share of a file system below which there is a warning.
const low = 0.05

func (v *visit) disks() {
	for _, d := range []struct{ what, path string }{{"root", v.Config.Config.Root}, {"state", v.Config.Config.State}} {
		path := d.path
		var st unix.Statfs_t
		err := unix.Statfs(path, &st)
		for errors.Is(err, fs.ErrNotExist) && path != "/" {
			path = filepath.Dir(path)
			err = unix.Statfs(path, &st)
		}
		if err != nil {
			v.warn("disk of "+d.what, "", "%s: %v", d.path, err)
			continue
		}
		free := st.Bavail * uint64(st.Bsize)
		switch {
		case st.Blocks > 0 && float64(st.Bavail) < low*float64(st.Blocks):
			v.warn("disk of "+d.what, "make room: berth rmi, or let the kubelet collect images earlier", "%s is nearly full: %d MiB left", d.path, free>>20)
		case st.Files > 0 && float64(st.Ffree) < low*float64(st.Files):
			v.warn("disk of "+d.what, "make room: images of many small files use up inodes", "%s has %d inodes left", d.path, st.Ffree)
		default:
			v.ok("disk of "+d.what, "%s: %d MiB free", d.path, free>>20)
		}
	}
}

func readInt(file string) (int, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(data)))
}
