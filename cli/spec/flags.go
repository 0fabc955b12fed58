// Package spec makes an OCI runtime configuration of what a user writes on the
// command line and what the image says. It is pure but for device nodes, which it
// looks at: it makes nothing, and it asks no daemon.
package spec

import (
	"github.com/spf13/pflag"
)

// Flags is what users say about a container, as they wrote it.
type Flags struct {
	Env, EnvFile         []string
	WorkDir, User        string
	Entrypoint           string
	EntrypointSet        bool
	Hostname, Domainname string
	Terminal             bool
	ReadOnly, Privileged bool
	CapAdd, CapDrop      []string
	Volumes, MountSpecs  []string
	Tmpfs                []string
	ShmSize              string
	Devices              []string
	DeviceCgroupRules    []string
	GroupAdd             []string
	SecurityOpt          []string
	Sysctls              []string
	Ulimits              []string
	Annotations          []string
	PID, IPC, UTS        string
	Cgroupns             string
	CgroupParent         string
	OOMScoreAdj          int
	OOMKillDisable       bool

	Memory, MemoryReservation, MemorySwap string
	CPUs                                  string
	CPUShares                             uint64
	CPUQuota                              int64
	CPUPeriod                             uint64
	CpusetCPUs, CpusetMems                string
	PidsLimit                             int64
	BlkioWeight                           uint16
}

// Add adds the flags to a command's.
func (x *Flags) Add(f *pflag.FlagSet) {
	f.StringArrayVarP(&x.Env, "env", "e", nil, "environment variable `NAME=VALUE`, or NAME to pass your own on")
	f.StringArrayVar(&x.EnvFile, "env-file", nil, "`file` of environment variables, one a line")
	f.StringVarP(&x.WorkDir, "workdir", "w", "", "`directory` to start in")
	f.StringVarP(&x.User, "user", "u", "", "`user[:group]` by name or number")
	f.StringSliceVar(&x.GroupAdd, "group-add", nil, "further `group` by name or number")
	f.StringVar(&x.Entrypoint, "entrypoint", "", "`program` instead of the image's entry point; \"\" for none")
	f.StringVar(&x.Hostname, "hostname", "", "host `name` (default: the short id)")
	f.StringVar(&x.Domainname, "domainname", "", "NIS domain `name`")
	f.BoolVarP(&x.Terminal, "tty", "t", false, "give it a terminal")
	f.BoolVar(&x.ReadOnly, "read-only", false, "make the root file system read-only")
	f.BoolVar(&x.Privileged, "privileged", false, "all capabilities and devices, and no confinement")
	f.StringSliceVar(&x.CapAdd, "cap-add", nil, "add a `capability`, or ALL")
	f.StringSliceVar(&x.CapDrop, "cap-drop", nil, "drop a `capability`, or ALL")
	f.StringArrayVarP(&x.Volumes, "volume", "v", nil, "bind mount `SOURCE:PATH[:OPTIONS]`: SOURCE is a path or a volume, options are ro, rw, rshared, …")
	f.StringArrayVar(&x.MountSpecs, "mount", nil, "mount by a `SPEC`: type=bind|tmpfs,source=…,target=…[,readonly,…]")
	f.StringArrayVar(&x.Tmpfs, "tmpfs", nil, "mount a tmpfs at `PATH[:OPTIONS]`")
	f.StringVar(&x.ShmSize, "shm-size", "64m", "`size` of /dev/shm")
	f.StringArrayVar(&x.Devices, "device", nil, "host `DEVICE`, as /dev/x[:/dev/y][:rwm]")
	f.StringArrayVar(&x.DeviceCgroupRules, "device-cgroup-rule", nil, "allow devices by a `RULE`, as 'c 1:3 rwm'")
	f.StringArrayVar(&x.SecurityOpt, "security-opt", nil, "`option`: no-new-privileges, seccomp=FILE|unconfined, apparmor=PROFILE|unconfined, label=…, systempaths=unconfined")
	f.StringArrayVar(&x.Sysctls, "sysctl", nil, "kernel parameter `NAME=VALUE`")
	f.StringArrayVar(&x.Ulimits, "ulimit", nil, "limit `NAME=SOFT[:HARD]`, as nofile=1024:4096")
	f.StringArrayVar(&x.Annotations, "annotation", nil, "annotation `NAME=VALUE` for the runtime")
	f.StringVar(&x.PID, "pid", "", "PID namespace `MODE`: host, or container:NAME")
	f.StringVar(&x.IPC, "ipc", "", "IPC namespace `MODE`: private, host or container:NAME")
	f.StringVar(&x.UTS, "uts", "", "UTS namespace `MODE`: host")
	f.StringVar(&x.Cgroupns, "cgroupns", "", "cgroup namespace `MODE`: host or private")
	f.StringVar(&x.CgroupParent, "cgroup-parent", "", "`path` of the cgroup to be in (default: the namespace's)")
	f.IntVar(&x.OOMScoreAdj, "oom-score-adj", 0, "`number` that makes the kernel kill it later or sooner (-1000 to 1000)")
	f.BoolVar(&x.OOMKillDisable, "oom-kill-disable", false, "do not kill it when memory is short (cgroup v1)")
	x.AddResources(f)
}

// AddResources adds those of limits, also for an update.
func (x *Flags) AddResources(f *pflag.FlagSet) {
	f.StringVarP(&x.Memory, "memory", "m", "", "most memory: a `SIZE` as 512m")
	f.StringVar(&x.MemoryReservation, "memory-reservation", "", "memory to keep it at when memory is short: a `SIZE`")
	f.StringVar(&x.MemorySwap, "memory-swap", "", "most memory and swap together: a `SIZE`, or -1 for no limit")
	f.StringVar(&x.CPUs, "cpus", "", "most processors: a `NUMBER` as 1.5")
	f.Uint64VarP(&x.CPUShares, "cpu-shares", "c", 0, "`weight` against others (default 1024)")
	f.Int64Var(&x.CPUQuota, "cpu-quota", 0, "CPU time for each period, in `MICROSECONDS`")
	f.Uint64Var(&x.CPUPeriod, "cpu-period", 0, "length of a period, in `MICROSECONDS`")
	f.StringVar(&x.CpusetCPUs, "cpuset-cpus", "", "`processors` to run on, as 0-3,5")
	f.StringVar(&x.CpusetMems, "cpuset-mems", "", "memory `nodes` to use")
	f.Int64Var(&x.PidsLimit, "pids-limit", 0, "most `processes`; -1 for no limit")
	f.Uint16Var(&x.BlkioWeight, "blkio-weight", 0, "disk `weight` against others, 10 to 1000")
}
