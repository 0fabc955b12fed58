package podspec

import (
	"maps"
	"slices"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// NRIPod is a pod as plugins see it. Handler is the name of its runtime handler.
func NRIPod(p Pod, systemd bool, handler string, ips []string) *api.PodSandbox {
	m := p.Config.GetMetadata()
	out := &api.PodSandbox{
		Id: p.ID, Name: m.GetName(), Uid: m.GetUid(), Namespace: m.GetNamespace(), Labels: maps.Clone(p.Config.GetLabels()), Annotations: maps.Clone(p.Config.GetAnnotations()),
		RuntimeHandler: handler, Pid: uint32(p.InfraPID), Ips: slices.Clone(ips),
	}
	l := p.Config.GetLinux()
	out.Linux = &api.LinuxPodSandbox{PodOverhead: NRIResources(l.GetOverhead()), PodResources: NRIResources(l.GetResources()), CgroupParent: l.GetCgroupParent()}
	out.Linux.CgroupsPath, _ = CgroupPath(systemd, l.GetCgroupParent(), p.ID) // a pod with a wrong one has none
	for _, n := range []struct{ typ, path string }{{"network", p.Net}, {"ipc", p.IPC}, {"uts", p.UTS}, {"user", p.User}} {
		if n.path != "" {
			out.Linux.Namespaces = append(out.Linux.Namespaces, &api.LinuxNamespace{Type: n.typ, Path: n.path})
		}
	}
	return out
}

// NRIState is what a container's spec does not tell of it.
type NRIState struct {
	ID, Pod                     string
	Config                      *cri.ContainerConfig
	State                       api.ContainerState
	Pid                         uint32
	Created, Started, Finished  time.Time
	ExitCode                    int32
	Reason, Message             string
	Image, Digest, ConfigDigest string // name, digests of manifest and config
	UnsetSeccomp                string // the setting for containers that name no profile
}

// NRIContainer is a container as plugins see it. Without a spec (it is lost) it is
// what the config says.
func NRIContainer(s *specs.Spec, st NRIState) *api.Container {
	out := &api.Container{
		Id: st.ID, PodSandboxId: st.Pod, Name: st.Config.GetMetadata().GetName(), State: st.State, Pid: st.Pid,
		Labels: maps.Clone(st.Config.GetLabels()), Annotations: maps.Clone(st.Config.GetAnnotations()),
		CreatedAt: nanos(st.Created), StartedAt: nanos(st.Started), FinishedAt: nanos(st.Finished), ExitCode: st.ExitCode, StatusReason: st.Reason, StatusMessage: st.Message,
		Image: &api.Image{Name: st.Image, Digest: st.Digest, ConfigDigest: st.ConfigDigest},
	}
	for _, d := range st.Config.GetCDIDevices() {
		out.CDIDevices = append(out.CDIDevices, &api.CDIDevice{Name: d.GetName()})
	}
	if s == nil || s.Process == nil || s.Linux == nil {
		return out
	}
	out.Annotations = maps.Clone(s.Annotations)
	if out.Annotations == nil {
		out.Annotations = map[string]string{}
	}
	maps.Copy(out.Annotations, st.Config.GetAnnotations())
	out.Args, out.Env = slices.Clone(s.Process.Args), slices.Clone(s.Process.Env)
	out.Mounts, out.Hooks = api.FromOCIMounts(s.Mounts), api.FromOCIHooks(s.Hooks)
	for _, r := range s.Process.Rlimits {
		out.Rlimits = append(out.Rlimits, &api.POSIXRlimit{Type: r.Type, Hard: r.Hard, Soft: r.Soft})
	}
	u := s.Process.User
	out.User = &api.User{Uid: u.UID, Gid: u.GID, AdditionalGids: slices.Clone(u.AdditionalGids)}
	out.Linux = &api.LinuxContainer{
		Namespaces: api.FromOCILinuxNamespaces(s.Linux.Namespaces), Devices: api.FromOCILinuxDevices(s.Linux.Devices),
		Resources: api.FromOCILinuxResources(s.Linux.Resources, nil), CgroupsPath: s.Linux.CgroupsPath, Sysctl: maps.Clone(s.Linux.Sysctl),
		NetDevices:     api.FromOCILinuxNetDevices(s.Linux.NetDevices),
		SeccompProfile: seccompView(st), IoPriority: api.FromOCILinuxIOPriority(s.Process.IOPriority), Scheduler: api.FromOCILinuxScheduler(s.Process.Scheduler),
	}
	if s.Linux.Seccomp != nil {
		out.Linux.SeccompPolicy = api.FromOCILinuxSeccomp(s.Linux.Seccomp)
	}
	if s.Process.OOMScoreAdj != nil {
		out.Linux.OomScoreAdj = api.Int(*s.Process.OOMScoreAdj)
	}
	if r := s.Linux.IntelRdt; r != nil {
		out.Linux.Rdt = &api.LinuxRdt{ClosId: api.String(r.ClosID), Schemata: api.RepeatedString(r.Schemata), EnableMonitoring: api.Bool(r.EnableMonitoring)}
	}
	return out
}

func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func seccompView(st NRIState) *api.SecurityProfile {
	p, err := seccompOf(Settings{UnsetSeccomp: st.UnsetSeccomp}, st.Config.GetLinux().GetSecurityContext())
	if err != nil {
		return nil
	}
	return &api.SecurityProfile{ProfileType: api.SecurityProfile_ProfileType(p.kind), LocalhostRef: p.ref}
}

// NRIResources are CRI's limits as plugins see them.
func NRIResources(r *cri.LinuxContainerResources) *api.LinuxResources {
	if r == nil {
		return nil
	}
	out := &api.LinuxResources{Cpu: &api.LinuxCPU{Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems()}, Memory: &api.LinuxMemory{}, Unified: maps.Clone(r.GetUnified())}
	if n := r.GetCpuShares(); n > 0 {
		out.Cpu.Shares = api.UInt64(uint64(n))
	}
	if n := r.GetCpuQuota(); n != 0 {
		out.Cpu.Quota = api.Int64(n)
	}
	if n := r.GetCpuPeriod(); n > 0 {
		out.Cpu.Period = api.UInt64(uint64(n))
	}
	if n := r.GetMemoryLimitInBytes(); n != 0 {
		out.Memory.Limit = api.Int64(n)
	}
	if n := r.GetMemorySwapLimitInBytes(); n != 0 {
		out.Memory.Swap = api.Int64(n)
	}
	for _, l := range r.GetHugepageLimits() {
		out.HugepageLimits = append(out.HugepageLimits, &api.HugepageLimit{PageSize: l.GetPageSize(), Limit: l.GetLimit()})
	}
	return out
}

// OCIToNRI are a spec's limits as plugins see them.
func OCIToNRI(r *specs.LinuxResources) *api.LinuxResources {
	return api.FromOCILinuxResources(r, nil)
}
