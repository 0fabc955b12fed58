package cgroup

import (
	"math"
	"time"
)

// Usage is what a group has used, whatever its version. Times are in nanoseconds,
// sizes in bytes; a limit is NoLimit where there is none.
type Usage struct {
	At     time.Time
	CPU    CPUUsage
	Memory MemoryUsage

	OOMKills              uint64
	Threads, ThreadsLimit uint64
	IO                    []IOUsage
	Huge                  []Hugetlb
	CPUWait, MemWait      *Pressure // nil where the kernel does not tell
	IOWait                *Pressure
	Processes             []int // where somebody has listed them (Group.Pids)
}

// CPUUsage is processor time, and how often a quota stopped it.
type CPUUsage struct{ Total, User, System, Periods, Throttled, ThrottledTime uint64 }

// MemoryUsage is memory by kind.
type MemoryUsage struct {
	Usage, Limit, Peak, Failed uint64
	WorkingSet                 uint64 // usage without what the kernel can take back at once
	RSS, Cache, Kernel, Mapped uint64
	Swap, SwapLimit            uint64
	ActiveFile, InactiveFile   uint64
	Faults, MajorFaults        uint64
}

// IOUsage is what one device did for a group.
type IOUsage struct {
	Major, Minor          uint64
	ReadBytes, WriteBytes uint64
	Reads, Writes         uint64
}

// NoLimit stands for a limit that there is not.
const NoLimit = math.MaxUint64

// Usage reads a group's counters, about twenty files.
func (g *Group) Usage() Usage {
	if g.unified {
		return finish(usageV2(g.StatV2()))
	}
	return finish(usageV1(g.StatV1()))
}

// Brief is Usage without what takes long to read and CRI's statistics do not have:
// devices, huge pages, quotas. About seven files.
func (g *Group) Brief() Usage {
	var r reader
	if g.unified {
		d := g.dirs[""]
		v := &V2{}
		table(r.read(d, "cpu.stat"), cpu2Names, v.CPU[:])
		table(r.read(d, "memory.stat"), memory2Names, v.Memory[:])
		for i, name := range limit2Files[:limitPeak] {
			v.Limits[i] = r.number(d, name, math.MaxUint64)
		}
		v.CPUWait, v.MemWait, v.IOWait = pressure(r.read(d, "cpu.pressure")), pressure(r.read(d, "memory.pressure")), pressure(r.read(d, "io.pressure"))
		return finish(usageV2(v))
	}
	v := &V1{}
	if d := g.dirs["cpuacct"]; d != "" {
		v.CPU.Total = r.number(d, "cpuacct.usage", 0)
	}
	if d := g.dirs["memory"]; d != "" {
		m := &Memory1{}
		table(r.read(d, "memory.stat"), memory1Names, m.Stat[:])
		for i, module := range []string{"memory.", "memory.memsw."} {
			m.Entries[i] = Entry1{Limit: r.number(d, module+"limit_in_bytes", 0), Usage: r.number(d, module+"usage_in_bytes", 0)}
		}
		v.Memory = m
	}
	return finish(usageV1(v))
}

func finish(u Usage) Usage {
	u.At = time.Now()
	if m := &u.Memory; m.Usage > m.InactiveFile {
		m.WorkingSet = m.Usage - m.InactiveFile
	}
	return u
}

// Places in Memory1.Stat and V2.Memory: see their names there.
const (
	v1MappedTotal, v1CacheTotal, v1RSSTotal                  = 20, 17, 18
	v1FaultTotal, v1MajorTotal, v1InactiveFile, v1ActiveFile = 25, 26, 29, 30
	v2Anon, v2File, v2KernelStack, v2Slab, v2Mapped          = 0, 1, 2, 3, 6
	v2InactiveFile, v2ActiveFile, v2Fault, v2MajorFault      = 12, 13, 17, 18
	blkioBytes, blkioOperations                              = 0, 1
	entryMemory, entrySwap, entryKernel                      = 0, 1, 2
	limitUsage, limitMax, limitSwap, limitSwapMax, limitPeak = 0, 1, 2, 3, 4
	cpu2Usage, cpu2User, cpu2System, cpu2Periods             = 0, 1, 2, 3
	cpu2Throttled, cpu2ThrottledTime                         = 4, 5
	micro                                                    = 1000
	// v1 writes "no limit" as the largest multiple of a page.
	v1NoLimit = math.MaxInt64 - 1<<20
)

func v1Limit(n uint64) uint64 {
	if n >= v1NoLimit {
		return NoLimit
	}
	return n
}

func usageV1(v *V1) Usage {
	var u Usage
	u.CPU.Total, u.CPU.User, u.CPU.System = v.CPU.Total, v.CPU.User, v.CPU.Kernel
	u.CPU.Periods, u.CPU.Throttled, u.CPU.ThrottledTime = v.CPU.Throttle[0], v.CPU.Throttle[1], v.CPU.Throttle[2]
	u.Memory.Limit, u.Memory.SwapLimit, u.ThreadsLimit = NoLimit, NoLimit, NoLimit
	if m := v.Memory; m != nil {
		e := m.Entries[entryMemory]
		u.Memory.Usage, u.Memory.Limit, u.Memory.Peak, u.Memory.Failed = e.Usage, v1Limit(e.Limit), e.Max, e.Failed
		if s := m.Entries[entrySwap]; s.Usage > e.Usage {
			u.Memory.Swap = s.Usage - e.Usage
		}
		if s := v1Limit(m.Entries[entrySwap].Limit); s != NoLimit && s != 0 {
			u.Memory.SwapLimit = s
		}
		u.Memory.Kernel = m.Entries[entryKernel].Usage
		u.Memory.Cache, u.Memory.RSS, u.Memory.Mapped = m.Stat[v1CacheTotal], m.Stat[v1RSSTotal], m.Stat[v1MappedTotal]
		u.Memory.InactiveFile, u.Memory.ActiveFile = m.Stat[v1InactiveFile], m.Stat[v1ActiveFile]
		u.Memory.Faults, u.Memory.MajorFaults = m.Stat[v1FaultTotal], m.Stat[v1MajorTotal]
	}
	if v.OOM != nil {
		u.OOMKills = v.OOM[2]
	}
	if v.Pids != nil {
		u.Threads = v.Pids.Current
		if v.Pids.Limit > 0 {
			u.ThreadsLimit = v.Pids.Limit
		}
	}
	if v.Blkio != nil {
		u.IO = blkioUsage(v.Blkio)
	}
	u.Huge = v.Hugetlb
	return u
}

func blkioUsage(b *Blkio) []IOUsage {
	type device struct{ major, minor uint64 }
	all := map[device]*IOUsage{}
	var order []device
	for list, to := range map[int]func(*IOUsage) (r, w *uint64){
		blkioBytes:      func(u *IOUsage) (*uint64, *uint64) { return &u.ReadBytes, &u.WriteBytes },
		blkioOperations: func(u *IOUsage) (*uint64, *uint64) { return &u.Reads, &u.Writes },
	} {
		for _, e := range b.Lists[list] {
			d := device{e.Major, e.Minor}
			u := all[d]
			if u == nil {
				u = &IOUsage{Major: e.Major, Minor: e.Minor}
				all[d] = u
				order = append(order, d)
			}
			r, w := to(u)
			switch e.Op {
			case "Read", "read":
				*r = e.Value
			case "Write", "write":
				*w = e.Value
			}
		}
	}
	out := make([]IOUsage, 0, len(order))
	for _, d := range order {
		out = append(out, *all[d])
	}
	return out
}

func usageV2(v *V2) Usage {
	var u Usage
	c := v.CPU
	u.CPU.Total, u.CPU.User, u.CPU.System = c[cpu2Usage]*micro, c[cpu2User]*micro, c[cpu2System]*micro
	u.CPU.Periods, u.CPU.Throttled, u.CPU.ThrottledTime = c[cpu2Periods], c[cpu2Throttled], c[cpu2ThrottledTime]*micro
	u.Memory.Usage, u.Memory.Limit, u.Memory.Swap, u.Memory.SwapLimit, u.Memory.Peak = v.Limits[limitUsage], v.Limits[limitMax], v.Limits[limitSwap], v.Limits[limitSwapMax], v.Limits[limitPeak]
	m := v.Memory
	u.Memory.RSS, u.Memory.Cache, u.Memory.Mapped, u.Memory.Kernel = m[v2Anon], m[v2File], m[v2Mapped], m[v2KernelStack]+m[v2Slab]
	u.Memory.InactiveFile, u.Memory.ActiveFile, u.Memory.Faults, u.Memory.MajorFaults = m[v2InactiveFile], m[v2ActiveFile], m[v2Fault], m[v2MajorFault]
	if v.Events != nil {
		u.Memory.Failed, u.OOMKills = v.Events[2], v.Events[4]
	}
	u.Threads, u.ThreadsLimit = v.Pids.Current, v.Pids.Limit
	for _, e := range v.IO {
		u.IO = append(u.IO, IOUsage{e.Major, e.Minor, e.RBytes, e.WBytes, e.RIOs, e.WIOs})
	}
	u.Huge, u.CPUWait, u.MemWait, u.IOWait = v.Hugetlb, v.CPUWait, v.MemWait, v.IOWait
	return u
}

// Add adds what another group has used, for what is spread over several groups.
func (u *Usage) Add(o Usage) {
	for _, p := range []struct{ to, from *uint64 }{
		{&u.CPU.Total, &o.CPU.Total}, {&u.CPU.User, &o.CPU.User}, {&u.CPU.System, &o.CPU.System}, {&u.Memory.Usage, &o.Memory.Usage},
		{&u.Memory.WorkingSet, &o.Memory.WorkingSet}, {&u.Memory.RSS, &o.Memory.RSS}, {&u.Memory.Cache, &o.Memory.Cache}, {&u.Memory.Swap, &o.Memory.Swap},
		{&u.Memory.Faults, &o.Memory.Faults}, {&u.Memory.MajorFaults, &o.Memory.MajorFaults}, {&u.Threads, &o.Threads},
	} {
		*p.to += *p.from
	}
	u.Processes = append(u.Processes, o.Processes...)
	if u.At.Before(o.At) {
		u.At = o.At
	}
}
