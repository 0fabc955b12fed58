package podspec

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/base/errs"
)

func (b *building) resources() error {
	r, err := Resources(b.host, b.h, b.c.Config.GetLinux().GetResources())
	if err != nil {
		return err
	}
	Merge(b.s, r)
	return nil
}

// Resources turns CRI's limits into those of a spec. What is 0 or empty is not
// limited, and nil in the result.
func Resources(host Host, h Handler, r *cri.LinuxContainerResources) (*specs.LinuxResources, error) {
	out := &specs.LinuxResources{}
	for _, v := range []struct {
		name string
		n    int64
	}{{"cpu_period", r.GetCpuPeriod()}, {"cpu_shares", r.GetCpuShares()}, {"memory_limit_in_bytes", r.GetMemoryLimitInBytes()}} {
		if v.n < 0 {
			return nil, errs.New(errs.InvalidArgument, "%s is %d: it cannot be negative", v.name, v.n)
		}
	}
	cpu := specs.LinuxCPU{Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems()}
	if n := r.GetCpuPeriod(); n != 0 {
		cpu.Period = new(uint64(n))
	}
	if n := r.GetCpuQuota(); n != 0 {
		cpu.Quota = &n
	}
	if n := r.GetCpuShares(); n != 0 {
		cpu.Shares = new(uint64(n))
	}
	if cpu != (specs.LinuxCPU{}) {
		out.CPU = &cpu
	}
	var err error
	if out.Memory, err = memory(host, r); err != nil {
		return nil, err
	}
	if out.HugepageLimits, err = hugepages(host, h.Settings, r.GetHugepageLimits()); err != nil {
		return nil, err
	}
	if u := r.GetUnified(); len(u) > 0 {
		if !host.Cgroup2 {
			return nil, errs.New(errs.FailedPrecondition, "unified: the controllers of this host are not in the unified hierarchy")
		}
		for k := range u {
			if k == "" || strings.ContainsAny(k, "/\x00\n") || !strings.Contains(k, ".") {
				return nil, errs.New(errs.InvalidArgument, "unified: %q is no file of a cgroup", k)
			}
		}
		out.Unified = maps.Clone(u)
	}
	return out, nil
}

// memory limits. Without a limit of its own swap is not to be had: memory and swap
// together have the memory's limit.
func memory(host Host, r *cri.LinuxContainerResources) (*specs.LinuxMemory, error) {
	limit, swap := r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes()
	if limit == 0 && swap == 0 {
		return nil, nil
	}
	if limit == 0 && swap < 0 { // no limit at all
		return &specs.LinuxMemory{Swap: swapOf(host, swap)}, nil
	}
	if limit == 0 {
		return nil, errs.New(errs.InvalidArgument, "memory_swap_limit_in_bytes needs memory_limit_in_bytes")
	}
	if swap > 0 && swap < limit {
		return nil, errs.New(errs.InvalidArgument, "memory_swap_limit_in_bytes %d is below memory_limit_in_bytes %d, which it includes", swap, limit)
	}
	if swap == 0 {
		swap = limit
	}
	return &specs.LinuxMemory{Limit: &limit, Swap: swapOf(host, swap)}, nil
}

// swapOf is a limit of swap where swap is accounted.
func swapOf(host Host, n int64) *int64 {
	if !host.Swap {
		return nil
	}
	return &n
}

func hugepages(host Host, s Settings, all []*cri.HugepageLimit) ([]specs.LinuxHugepageLimit, error) {
	if s.DisableHugetlb && !host.Hugetlb || len(all) == 0 {
		return nil, nil
	}
	if !host.Hugetlb {
		if s.TolerateNoHugetlb {
			host.warn("hugetlb", "there is no hugetlb cgroup controller: limits of huge pages are not applied")
			return nil, nil
		}
		return nil, errs.New(errs.FailedPrecondition, "hugepage_limits: there is no hugetlb cgroup controller")
	}
	var out []specs.LinuxHugepageLimit
	for _, l := range all {
		if !slices.Contains(host.HugepageSize, l.GetPageSize()) {
			return nil, errs.New(errs.InvalidArgument, "hugepage_limits: this kernel has no pages of %q, only %v", l.GetPageSize(), host.HugepageSize)
		}
		out = append(out, specs.LinuxHugepageLimit{Pagesize: l.GetPageSize(), Limit: l.GetLimit()})
	}
	return out, nil
}

// Merge puts limits into a spec; what they do not say stays as it is. It is how a
// container is updated in place.
func Merge(s *specs.Spec, r *specs.LinuxResources) {
	if s.Linux == nil {
		s.Linux = &specs.Linux{}
	}
	if s.Linux.Resources == nil {
		s.Linux.Resources = &specs.LinuxResources{}
	}
	to := s.Linux.Resources
	if r.CPU != nil {
		to.CPU = mergeCPU(to.CPU, r.CPU)
	}
	if r.Memory != nil {
		to.Memory = mergeMemory(to.Memory, r.Memory)
	}
	if r.Pids != nil {
		to.Pids = r.Pids
	}
	for _, l := range r.HugepageLimits {
		to.HugepageLimits = slices.DeleteFunc(slices.Clone(to.HugepageLimits), func(o specs.LinuxHugepageLimit) bool { return o.Pagesize == l.Pagesize })
		to.HugepageLimits = append(to.HugepageLimits, l)
	}
	if len(r.Unified) > 0 {
		u := maps.Clone(to.Unified)
		if u == nil {
			u = map[string]string{}
		}
		maps.Copy(u, r.Unified)
		to.Unified = u
	}
}

func mergeCPU(old, r *specs.LinuxCPU) *specs.LinuxCPU {
	c := specs.LinuxCPU{}
	if old != nil {
		c = *old
	}
	c.Period, c.Quota, c.Shares = cmp.Or(r.Period, c.Period), cmp.Or(r.Quota, c.Quota), cmp.Or(r.Shares, c.Shares)
	c.RealtimePeriod, c.RealtimeRuntime = cmp.Or(r.RealtimePeriod, c.RealtimePeriod), cmp.Or(r.RealtimeRuntime, c.RealtimeRuntime)
	c.Cpus, c.Mems = cmp.Or(r.Cpus, c.Cpus), cmp.Or(r.Mems, c.Mems)
	return &c
}

func mergeMemory(old, r *specs.LinuxMemory) *specs.LinuxMemory {
	m := specs.LinuxMemory{}
	if old != nil {
		m = *old
	}
	m.Limit, m.Swap, m.Reservation = cmp.Or(r.Limit, m.Limit), cmp.Or(r.Swap, m.Swap), cmp.Or(r.Reservation, m.Reservation)
	m.KernelTCP, m.Swappiness = cmp.Or(r.KernelTCP, m.KernelTCP), cmp.Or(r.Swappiness, m.Swappiness)
	m.DisableOOMKiller, m.UseHierarchy = cmp.Or(r.DisableOOMKiller, m.DisableOOMKiller), cmp.Or(r.UseHierarchy, m.UseHierarchy)
	if m.Limit != nil && m.Swap != nil && *m.Swap > 0 && *m.Swap < *m.Limit {
		m.Swap = m.Limit // it includes the memory: the kernel takes no less
	}
	return &m
}
