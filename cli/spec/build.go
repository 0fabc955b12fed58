package spec

import (
	"encoding/json"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/profiles/seccomp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
)

// Facts is what the command line has found out about the container to be.
type Facts struct {
	ID, Namespace string
	Image         ocispec.ImageConfig
	Args          []string // of the command line, after the image
	User          rspec.User
	Home          string            // of the user; "" if nobody knows
	Network       string            // path of a network namespace, "host", or "" for one of its own
	Files         []rspec.Mount     // hosts, hostname, resolv.conf
	Join          map[string]string // other namespaces: kind to path
	Getenv        func(string) (string, bool)
	MakeDir       func(string) error
	// Volume gives the directory of a named volume that is mounted at a place.
	Volume func(name, at string) (string, error)
}

// capabilities that a container has by default: Docker's.
var capabilities = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
	"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

// Build makes the configuration.
func (x *Flags) Build(f Facts) (*rspec.Spec, error) {
	args, err := x.command(f)
	if err != nil {
		return nil, err
	}
	env, err := Environment(f.Image.Env, x.EnvFile, x.Env, x.Terminal, f.Getenv)
	if err != nil {
		return nil, err
	}
	if f.Home != "" && !slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, "HOME=") }) {
		env = append(env, "HOME="+f.Home)
	}
	caps, err := x.capabilities()
	if err != nil {
		return nil, err
	}
	limits, err := ulimits(x.Ulimits)
	if err != nil {
		return nil, err
	}
	cwd := x.WorkDir
	if cwd == "" {
		cwd = f.Image.WorkingDir
	}
	if cwd == "" {
		cwd = "/"
	}
	if !path.IsAbs(cwd) {
		return nil, invalid("working directory %q: it must be an absolute path", cwd)
	}
	annotations, err := Pairs("annotation", x.Annotations)
	if err != nil {
		return nil, err
	}
	s := &rspec.Spec{
		Version:     rspec.Version,
		Root:        &rspec.Root{Path: "rootfs", Readonly: x.ReadOnly},
		Hostname:    x.hostname(f),
		Domainname:  x.Domainname,
		Annotations: annotations,
		Process: &rspec.Process{
			Terminal: x.Terminal, User: f.User, Args: args, Env: env, Cwd: cwd, Rlimits: limits,
			Capabilities: &rspec.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
		},
		Linux: &rspec.Linux{CgroupsPath: path.Join("/", f.Namespace, f.ID)},
	}
	if f.User.UID != 0 { // as the kernel does at execve(2) for a user that is not root
		s.Process.Capabilities.Effective, s.Process.Capabilities.Permitted = nil, nil
	}
	if x.CgroupParent != "" {
		s.Linux.CgroupsPath = path.Join("/", x.CgroupParent, f.ID)
	}
	if x.OOMScoreAdj != 0 {
		s.Process.OOMScoreAdj = &x.OOMScoreAdj
	}
	for _, step := range []func(*rspec.Spec, Facts) error{x.mounts, x.namespaces, x.sysctls, x.resources, x.devices, x.security} {
		if err := step(s, f); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// command is what runs: the entry point, then the arguments or else the image's.
func (x *Flags) command(f Facts) ([]string, error) {
	entry, args := f.Image.Entrypoint, f.Args
	if x.EntrypointSet {
		entry = nil
		if x.Entrypoint != "" {
			entry = []string{x.Entrypoint}
		}
	} else if len(args) == 0 {
		args = f.Image.Cmd
	}
	all := append(slices.Clone(entry), args...)
	if len(all) == 0 {
		return nil, invalid("the image says no command to run: give one after its name")
	}
	return all, nil
}

func (x *Flags) hostname(f Facts) string {
	if x.UTS == "host" {
		return ""
	}
	if x.Hostname != "" {
		return x.Hostname
	}
	if f.Network == "host" {
		if h, err := os.Hostname(); err == nil {
			return h
		}
	}
	return f.ID[:min(len(f.ID), 12)]
}

func (x *Flags) mounts(s *rspec.Spec, f Facts) error {
	standard, err := x.standard()
	if err != nil {
		return err
	}
	asked, err := x.asked(f)
	if err != nil {
		return err
	}
	s.Mounts = over(append(standard, f.Files...), asked)
	if f.Network == "host" && !x.Privileged {
		for i, m := range s.Mounts {
			if m.Destination == "/sys" && m.Type == "sysfs" { // sysfs is tied to the network namespace
				s.Mounts[i] = rspec.Mount{Destination: "/sys", Type: "bind", Source: "/sys", Options: []string{"rbind", "nosuid", "noexec", "nodev", "ro"}}
			}
		}
	}
	for _, m := range s.Mounts {
		for _, o := range m.Options {
			if o == "rshared" || o == "shared" {
				s.Linux.RootfsPropagation = "rshared"
			} else if (o == "rslave" || o == "slave") && s.Linux.RootfsPropagation == "" {
				s.Linux.RootfsPropagation = "rslave"
			}
		}
	}
	return nil
}

func (x *Flags) namespaces(s *rspec.Spec, f Facts) error {
	add := func(kind rspec.LinuxNamespaceType, path string) {
		s.Linux.Namespaces = append(s.Linux.Namespaces, rspec.LinuxNamespace{Type: kind, Path: path})
	}
	add(rspec.MountNamespace, "")
	if f.Network != "host" {
		add(rspec.NetworkNamespace, f.Network)
	}
	for _, n := range []struct {
		kind rspec.LinuxNamespaceType
		mode string
	}{{rspec.PIDNamespace, x.PID}, {rspec.IPCNamespace, x.IPC}, {rspec.UTSNamespace, x.UTS}, {rspec.CgroupNamespace, x.Cgroupns}} {
		switch {
		case n.mode == "host":
		case strings.HasPrefix(n.mode, "container:") && f.Join[string(n.kind)] != "":
			add(n.kind, f.Join[string(n.kind)])
		case n.mode == "" || n.mode == "private":
			if n.kind != rspec.CgroupNamespace || n.mode == "private" || unifiedCgroups() {
				add(n.kind, "")
			}
		default:
			return invalid("--%s=%s: there are host, private and, for pid and ipc, container:NAME", n.kind, n.mode)
		}
	}
	return nil
}

// unifiedCgroups reports whether this machine has cgroup v2 only (cgroups(7)).
func unifiedCgroups() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

func (x *Flags) sysctls(s *rspec.Spec, f Facts) (err error) {
	s.Linux.Sysctl, err = Pairs("sysctl", x.Sysctls)
	if err == nil && f.Network != "host" && !x.Privileged {
		// As Docker: without these, an image that runs as a user cannot serve port 80.
		for k, v := range map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"} {
			if _, there := s.Linux.Sysctl[k]; !there && f.Network == "" {
				s.Linux.Sysctl[k] = v
			}
		}
	}
	return err
}

func ptr[T any](v T) *T { return &v }

func (x *Flags) resources(s *rspec.Spec, _ Facts) error {
	r, err := x.Resources()
	if err != nil {
		return err
	}
	s.Linux.Resources = r
	if x.OOMKillDisable {
		if r.Memory == nil {
			r.Memory = &rspec.LinuxMemory{}
		}
		r.Memory.DisableOOMKiller = ptr(true)
	}
	return nil
}

// Resources reads the limits alone, also for an update.
func (x *Flags) Resources() (*rspec.LinuxResources, error) {
	r := &rspec.LinuxResources{}
	for _, m := range []struct {
		flag, text string
		set        func(*rspec.LinuxMemory, int64)
	}{
		{"memory", x.Memory, func(m *rspec.LinuxMemory, n int64) { m.Limit = &n }},
		{"memory-reservation", x.MemoryReservation, func(m *rspec.LinuxMemory, n int64) { m.Reservation = &n }},
		{"memory-swap", x.MemorySwap, func(m *rspec.LinuxMemory, n int64) { m.Swap = &n }},
	} {
		if m.text == "" {
			continue
		}
		n, err := int64(-1), error(nil)
		if m.text != "-1" {
			n, err = Bytes(m.text)
		}
		if err != nil {
			return nil, fmt.Errorf("--%s: %w", m.flag, err)
		}
		if r.Memory == nil {
			r.Memory = &rspec.LinuxMemory{}
		}
		m.set(r.Memory, n)
	}
	if m := r.Memory; m != nil && m.Swap != nil && *m.Swap >= 0 && (m.Limit == nil || *m.Swap < *m.Limit) {
		return nil, invalid("--memory-swap is memory and swap together: it needs a --memory that is not above it")
	}
	if err := x.cpu(r); err != nil {
		return nil, err
	}
	if x.PidsLimit != 0 {
		r.Pids = &rspec.LinuxPids{Limit: &x.PidsLimit}
	}
	if x.BlkioWeight != 0 {
		r.BlockIO = &rspec.LinuxBlockIO{Weight: &x.BlkioWeight}
	}
	return r, nil
}

const defaultPeriod = 100_000 // µs, the kernel's own

func (x *Flags) cpu(r *rspec.LinuxResources) error {
	c := &rspec.LinuxCPU{Cpus: x.CpusetCPUs, Mems: x.CpusetMems}
	if x.CPUShares != 0 {
		c.Shares = &x.CPUShares
	}
	if x.CPUQuota != 0 {
		c.Quota = &x.CPUQuota
	}
	if x.CPUPeriod != 0 {
		c.Period = &x.CPUPeriod
	}
	if x.CPUs != "" {
		n, err := strconv.ParseFloat(x.CPUs, 64)
		if err != nil || n < 0.01 || n > 100_000 {
			return invalid("--cpus %q: use a number from 0.01, as 1.5", x.CPUs)
		}
		if c.Quota != nil || c.Period != nil {
			return invalid("--cpus excludes --cpu-quota and --cpu-period")
		}
		c.Period, c.Quota = ptr(uint64(defaultPeriod)), ptr(int64(n*defaultPeriod))
	}
	if *c != (rspec.LinuxCPU{}) {
		r.CPU = c
	}
	return nil
}

func (x *Flags) devices(s *rspec.Spec, _ Facts) error {
	rules := []rspec.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	if x.Privileged {
		rules = []rspec.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
		devices, err := hostDevices("/dev")
		if err != nil {
			return err
		}
		s.Linux.Devices = devices
	}
	for _, d := range x.Devices {
		if strings.Contains(d, "=") {
			return invalid("device %q: devices of CDI are for pods; here, name nodes below /dev", d)
		}
		ds, cs, err := device(d)
		if err != nil {
			return err
		}
		s.Linux.Devices, rules = append(s.Linux.Devices, ds...), append(rules, cs...)
	}
	for _, r := range x.DeviceCgroupRules {
		c, err := cgroupRule(r)
		if err != nil {
			return err
		}
		rules = append(rules, c)
	}
	s.Linux.Resources.Devices = rules
	return nil
}

// hostDevices are all device nodes of the host but those that a container has its
// own of.
func hostDevices(dir string) (out []rspec.LinuxDevice, err error) {
	skip := []string{"pts", "shm", "fd", "mqueue", "console", "lxc", "lxd-fuse", ".lxc", ".udev", "ptmx"}
	err = filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		if err != nil {
			return nil // it has gone meanwhile
		}
		if p != dir && slices.Contains(skip, e.Name()) {
			if e.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		if e.Type()&os.ModeDevice == 0 {
			return nil
		}
		if d, _, err := node(p, p, "rwm"); err == nil {
			out = append(out, d)
		}
		return nil
	})
	return out, err
}

// Hidden and Fixed are the paths of the kernel that a container may not see or
// change.
var (
	Hidden = []string{"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi",
		"/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware"}
	Fixed = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

func (x *Flags) security(s *rspec.Spec, _ Facts) error {
	profile := ""
	if !x.Privileged {
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = Hidden, Fixed
	} else {
		profile = "unconfined"
	}
	for _, o := range x.SecurityOpt {
		k, v, given := strings.Cut(o, "=")
		if !given { // the old way of writing it
			k, v, given = strings.Cut(o, ":")
		}
		switch {
		case k == "no-new-privileges" && (!given || v == "true"):
			s.Process.NoNewPrivileges = true
		case k == "no-new-privileges" && v == "false":
		case k == "seccomp" && given:
			profile = v
		case k == "apparmor" && given:
			if v != "unconfined" {
				s.Process.ApparmorProfile = v
			}
		case k == "label" && given:
			s.Process.SelinuxLabel = label(s.Process.SelinuxLabel, v)
		case k == "systempaths" && v == "unconfined":
			s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
		default:
			return invalid("--security-opt %q is not known", o)
		}
	}
	return setSeccomp(s, profile)
}

// label puts one "user:U", "role:R", "type:T" or "level:L" into an SELinux label.
func label(old, part string) string {
	fields := strings.SplitN(old, ":", 4)
	if old == "" {
		fields = []string{"system_u", "system_r", "container_t", "s0"}
	}
	k, v, _ := strings.Cut(part, ":")
	if i := slices.Index([]string{"user", "role", "type", "level"}, k); i >= 0 {
		fields[i] = v
		return strings.Join(fields, ":")
	}
	return old
}

// setSeccomp sets the default profile, none, or one of a file in Docker's format.
func setSeccomp(s *rspec.Spec, profile string) (err error) {
	switch profile {
	case "unconfined":
		return nil
	case "", "builtin":
		if _, err := os.Stat("/proc/sys/kernel/seccomp/actions_avail"); err != nil {
			return nil // this kernel has none
		}
		s.Linux.Seccomp, err = seccomp.GetDefaultProfile(s)
		return err
	}
	data, err := os.ReadFile(profile)
	if err != nil {
		return fmt.Errorf("seccomp profile: %w", err)
	}
	if !json.Valid(data) {
		return invalid("seccomp profile %s is no JSON", profile)
	}
	s.Linux.Seccomp, err = seccomp.LoadProfile(string(data), s)
	if err != nil {
		return fmt.Errorf("seccomp profile %s: %w", profile, err)
	}
	return nil
}
