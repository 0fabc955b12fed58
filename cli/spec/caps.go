package spec

import (
	"os"
	"slices"
	"strconv"
	"strings"
)

// allCapabilities are those of capabilities(7), in the order of their bits.
var allCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW",
	"CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT",
	"CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD",
	"CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG",
	"CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

// Held are the capabilities that this program, and so a daemon of the same user,
// may give away: the bounding set of proc(5).
func Held() []string {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return allCapabilities
	}
	for line := range strings.Lines(string(data)) {
		hex, ok := strings.CutPrefix(line, "CapBnd:")
		if !ok {
			continue
		}
		bits, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
		if err != nil {
			break
		}
		var out []string
		for i, c := range allCapabilities {
			if bits&(1<<i) != 0 {
				out = append(out, c)
			}
		}
		return out
	}
	return allCapabilities
}

// capabilities are Docker's defaults with what --cap-drop and --cap-add change.
func (x *Flags) capabilities() ([]string, error) {
	have := Held()
	if x.Privileged {
		return have, nil
	}
	add, addAll, err := capNames(x.CapAdd)
	if err != nil {
		return nil, err
	}
	drop, dropAll, err := capNames(x.CapDrop)
	if err != nil {
		return nil, err
	}
	base := capabilities
	switch {
	case addAll:
		base = have
	case dropAll:
		base = nil
	}
	var out []string
	for _, c := range allCapabilities {
		if slices.Contains(add, c) || slices.Contains(base, c) && !slices.Contains(drop, c) {
			out = append(out, c)
		}
	}
	for _, c := range add {
		if !slices.Contains(have, c) {
			return nil, invalid("--cap-add %s: this machine does not let us give it", c)
		}
	}
	return slices.DeleteFunc(out, func(c string) bool { return !slices.Contains(have, c) }), nil
}

func capNames(list []string) (names []string, all bool, err error) {
	for _, s := range list {
		n := strings.ToUpper(strings.TrimSpace(s))
		if n == "ALL" || n == "CAP_ALL" {
			all = true
			continue
		}
		if !strings.HasPrefix(n, "CAP_") {
			n = "CAP_" + n
		}
		if !slices.Contains(allCapabilities, n) {
			return nil, false, invalid("capability %q is not known (capabilities(7))", s)
		}
		names = append(names, n)
	}
	return names, all, nil
}
