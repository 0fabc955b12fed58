package podspec

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/base/errs"
)

// pathDefault is what a program finds others by if its image says nothing.
const pathDefault = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Paths of /proc and /sys that tell of the host or change it: hidden, or not to be
// written, in containers that are not privileged and ask for nothing else.
var (
	maskedDefault = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
		"/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
	}
	readonlyDefault = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// MaskedDefault are the paths that a container which asks for nothing does not see.
func MaskedDefault() []string { return append([]string(nil), maskedDefault...) }

// ReadonlyDefault are the paths that such a container cannot write.
func ReadonlyDefault() []string { return append([]string(nil), readonlyDefault...) }

// LoadBase reads the spec that a handler's containers start from (base_runtime_spec).
func LoadBase(file string) (*specs.Spec, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("base runtime spec: %w", err)
	}
	var s specs.Spec
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, errs.New(errs.InvalidArgument, "base runtime spec %s: %w", file, err)
	}
	return &s, nil
}

// base is the spec of a container that nothing is known of yet.
func (h Handler) base() (*specs.Spec, error) {
	if h.BaseSpec == nil {
		return builtin(), nil
	}
	// Through JSON: nothing in the result may be shared with the next one.
	text, err := json.Marshal(h.BaseSpec)
	if err != nil {
		return nil, err
	}
	s := &specs.Spec{}
	if err := json.Unmarshal(text, s); err != nil {
		return nil, err
	}
	if s.Version == "" {
		s.Version = specs.Version
	}
	if s.Process == nil {
		s.Process = &specs.Process{Cwd: "/"}
	}
	if s.Linux == nil {
		s.Linux = &specs.Linux{}
	}
	if s.Linux.Resources == nil {
		s.Linux.Resources = &specs.LinuxResources{}
	}
	if s.Mounts == nil {
		s.Mounts = mountsDefault()
	}
	s.Root = &specs.Root{Path: "rootfs"}
	s.Linux.Namespaces = nil // they follow from the pod
	return s, nil
}

func builtin() *specs.Spec {
	return &specs.Spec{
		Version: specs.Version,
		Process: &specs.Process{Cwd: "/"},
		Root:    &specs.Root{Path: "rootfs"},
		Mounts:  mountsDefault(),
		Linux: &specs.Linux{
			Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
		},
	}
}

// mountsDefault are the file systems that every Linux program expects
// (runtime-spec, config-linux.md, "Default Filesystems").
func mountsDefault() []specs.Mount {
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
	}
}
