package podspec

import (
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
	if limit == 0 {
		return nil, errs.New(errs.InvalidArgument, "memory_swap_limit_in_bytes needs memory_limit_in_bytes")
	}
	if swap > 0 && swap < limit {
		return nil, errs.New(errs.InvalidArgument, "memory_swap_limit_in_bytes %d is below memory_limit_in_bytes %d, which it includes", swap, limit)
	}
	out := &specs.LinuxMemory{Limit: &limit}
	if swap == 0 {
		swap = limit
	}
	if host.Swap {
		out.Swap = &swap
	}
	return out, nil
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
		m := specs.LinuxMemory{}
		if to.Memory != nil {
			m = *to.Memory
		}
		if r.Memory.Limit != nil {
			m.Limit = r.Memory.Limit
		}
		if r.Memory.Swap != nil {
			m.Swap = r.Memory.Swap
		}
		if r.Memory.Reservation != nil {
			m.Reservation = r.Memory.Reservation
		}
		to.Memory = &m
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
	if r.Period != nil {
		c.Period = r.Period
	}
	if r.Quota != nil {
		c.Quota = r.Quota
	}
	if r.Shares != nil {
		c.Shares = r.Shares
	}
	c.Cpus, c.Mems = or(r.Cpus, c.Cpus), or(r.Mems, c.Mems)
	return &c
}
