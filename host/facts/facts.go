// Package facts asks the kernel and this process what a container here may be
// given: capabilities, cgroups, security modules, devices, mounts. It changes
// nothing.
package facts

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
)

// capNames are the names of capabilities by number (capabilities(7),
// linux/capability.h).
var capNames = []string{
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "LINUX_IMMUTABLE",
	"NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT",
	"SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE",
	"AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ",
	"PERFMON", "BPF", "CHECKPOINT_RESTORE",
}

// CapNames lists the capabilities that this program knows, as CAP_NAME.
func CapNames() []string {
	out := make([]string, 0, len(capNames))
	for _, n := range capNames {
		out = append(out, "CAP_"+n)
	}
	return out
}

// Caps are the capabilities of this process that it can hand on: effective and in
// the bounding set, as CAP_NAME.
func Caps() ([]string, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return nil, err
	}
	masks := map[string]uint64{}
	for line := range strings.Lines(string(status)) {
		k, v, ok := strings.Cut(line, ":")
		if ok && (k == "CapBnd" || k == "CapPrm") {
			if masks[k], err = strconv.ParseUint(strings.TrimSpace(v), 16, 64); err != nil {
				return nil, fmt.Errorf("/proc/self/status: %s: %w", k, err)
			}
		}
	}
	var out []string
	for i, n := range capNames {
		if masks["CapBnd"]&masks["CapPrm"]&(1<<i) != 0 {
			out = append(out, "CAP_"+n)
		}
	}
	return out, nil
}

// OOMScoreAdj is this process's own value (proc(5)).
func OOMScoreAdj() (int, error) {
	b, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

// Cgroup2 reports whether the controllers are in the unified hierarchy.
func Cgroup2() bool {
	var st unix.Statfs_t
	return unix.Statfs("/sys/fs/cgroup", &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

// Controllers lists the cgroup controllers that can be used, of whichever version.
func Controllers() ([]string, error) {
	if Cgroup2() {
		b, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
		return strings.Fields(string(b)), err
	}
	// cgroups(7): name, hierarchy, number of cgroups, enabled. One that is in no
	// hierarchy of version 1 cannot be used.
	b, err := os.ReadFile("/proc/cgroups")
	if err != nil {
		return nil, err
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) != 4 || strings.HasPrefix(f[0], "#") || f[1] == "0" || f[3] != "1" {
			continue
		}
		out = append(out, f[0])
	}
	return out, nil
}

// MemorySwap reports whether the memory controller accounts swap.
func MemorySwap() bool {
	if !Cgroup2() {
		_, err := os.Stat("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes")
		return err == nil
	}
	// The root has no memory.swap.max: look into our own cgroup and below the root.
	found, err := filepath.Glob("/sys/fs/cgroup/*/memory.swap.max")
	return err == nil && len(found) > 0
}

// SELinux reports whether SELinux is enabled (selinuxfs is mounted).
func SELinux() bool {
	var st unix.Statfs_t
	return unix.Statfs("/sys/fs/selinux", &st) == nil && st.Type == unix.SELINUX_MAGIC
}

// HugepageSizes lists the page sizes of the kernel as specs name them: 2MB, 1GB.
func HugepageSizes() ([]string, error) {
	dirs, err := os.ReadDir("/sys/kernel/mm/hugepages")
	if err != nil {
		return nil, errs.Ignore(err, os.ErrNotExist)
	}
	var out []string
	for _, d := range dirs {
		kb, ok := strings.CutSuffix(strings.TrimPrefix(d.Name(), "hugepages-"), "kB")
		n, err := strconv.Atoi(kb)
		if !ok || err != nil {
			continue
		}
		unit := 0
		for ; n >= 1024 && n%1024 == 0 && unit < 2; n /= 1024 {
			unit++
		}
		out = append(out, strconv.Itoa(n)+[]string{"KB", "MB", "GB"}[unit])
	}
	slices.Sort(out)
	return out, nil
}

const resctrl = "/sys/fs/resctrl"

// RDT returns a function that reports whether a class exists, or nil if the
// resctrl file system is not mounted (kernel: Documentation/filesystems/resctrl.rst).
func RDT() func(class string) bool {
	if _, err := os.Stat(resctrl + "/schemata"); err != nil {
		return nil
	}
	return func(class string) bool {
		if !filepath.IsLocal(class) || strings.Contains(class, "/") {
			return false
		}
		_, err := os.Stat(filepath.Join(resctrl, class, "schemata"))
		return err == nil
	}
}
