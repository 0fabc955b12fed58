package cgroup

import (
	"bytes"
	"math"
	"strconv"
)

// V2 is what version 2 counts. Names and order of the arrays are those of
// io.containerd.cgroups.v2.Metrics, whose writer is shim/wire.
type V2 struct {
	Pids    Pids
	CPU     [6]uint64 // usage, user, system µs, periods, throttled periods, throttled µs
	Bursts  [2]uint64 // count, µs
	CPUWait *Pressure
	Memory  [31]uint64 // as memory2Names lists them
	Limits  [6]uint64  // usage, limit, swap usage, swap limit, peak, swap peak: bytes
	MemWait *Pressure
	Events  *[6]uint64 // low, high, max, oom, oom_kill, oom_group_kill
	IO      []IOEntry
	IOWait  *Pressure
	RDMA    RDMA
	Hugetlb []Hugetlb
}

// IOEntry is one device: bytes and operations, read and written.
type IOEntry struct{ Major, Minor, RBytes, WBytes, RIOs, WIOs uint64 }

// Pressure says how long processes waited (Documentation/accounting/psi.rst).
type Pressure struct{ Some, Full *Stall }

// Stall holds averages in per cent and a total in µs.
type Stall struct {
	Avg10, Avg60, Avg300 float64
	Total                uint64
}

var memory2Names = []string{
	"anon", "file", "kernel_stack", "slab", "sock", "shmem", "file_mapped", "file_dirty", "file_writeback", "anon_thp",
	"inactive_anon", "active_anon", "inactive_file", "active_file", "unevictable", "slab_reclaimable",
	"slab_unreclaimable", "pgfault", "pgmajfault", "workingset_refault", "workingset_activate",
	"workingset_nodereclaim", "pgrefill", "pgscan", "pgsteal", "pgactivate", "pgdeactivate", "pglazyfree",
	"pglazyfreed", "thp_fault_alloc", "thp_collapse_alloc",
}

var (
	cpu2Names   = []string{"usage_usec", "user_usec", "system_usec", "nr_periods", "nr_throttled", "throttled_usec"}
	burstNames  = []string{"nr_bursts", "burst_usec"}
	limit2Files = []string{"memory.current", "memory.max", "memory.swap.current", "memory.swap.max", "memory.peak", "memory.swap.peak"}
	eventNames  = []string{"low", "high", "max", "oom", "oom_kill", "oom_group_kill"}
)

// StatV2 reads all counters. What cannot be read is zero or nil.
func (g *Group) StatV2() *V2 {
	var r reader
	d := g.dirs[""]
	v := &V2{}
	v.Pids = Pids{r.number(d, "pids.current", math.MaxUint64), r.number(d, "pids.max", math.MaxUint64)}
	cpu := r.read(d, "cpu.stat")
	table(cpu, cpu2Names, v.CPU[:])
	table(cpu, burstNames, v.Bursts[:])
	table(r.read(d, "memory.stat"), memory2Names, v.Memory[:])
	for i, name := range limit2Files {
		v.Limits[i] = r.number(d, name, math.MaxUint64)
	}
	if events := r.read(d, "memory.events"); len(events) > 0 {
		v.Events = &[6]uint64{}
		table(events, eventNames, v.Events[:])
	}
	v.CPUWait = pressure(r.read(d, "cpu.pressure"))
	v.MemWait = pressure(r.read(d, "memory.pressure"))
	v.IOWait = pressure(r.read(d, "io.pressure"))
	v.IO = ioEntries(r.read(d, "io.stat"))
	v.RDMA = *rdma(&r, d)
	for _, size := range hugeSizes() {
		p := "hugetlb." + size
		h := Hugetlb{
			PageSize: size,
			Usage:    r.number(d, p+".current", 0),
			Max:      r.number(d, p+".max", math.MaxUint64),
		}
		pairs(r.read(d, p+".events"), func(key []byte, n uint64) {
			if string(key) == "max" {
				h.Failed = n
			}
		})
		v.Hugetlb = append(v.Hugetlb, h)
	}
	return v
}

// ioEntries reads lines of "major:minor rbytes=N wbytes=N rios=N wios=N …".
func ioEntries(data []byte) []IOEntry {
	var out []IOEntry
	for line := range bytes.Lines(data) {
		words := bytes.Fields(line)
		if len(words) < 2 {
			continue
		}
		major, minor, ok := bytes.Cut(words[0], []byte{':'})
		if !ok {
			continue
		}
		e := IOEntry{Major: number(major, 0), Minor: number(minor, 0)}
		for _, kv := range words[1:] {
			k, val, _ := bytes.Cut(kv, []byte{'='})
			n := number(val, 0)
			switch string(k) {
			case "rbytes":
				e.RBytes = n
			case "wbytes":
				e.WBytes = n
			case "rios":
				e.RIOs = n
			case "wios":
				e.WIOs = n
			}
		}
		out = append(out, e)
	}
	return out
}

// pressure reads lines of "some avg10=N avg60=N avg300=N total=N".
func pressure(data []byte) *Pressure {
	if len(data) == 0 {
		return nil
	}
	p := &Pressure{}
	for line := range bytes.Lines(data) {
		words := bytes.Fields(line)
		if len(words) == 0 {
			continue
		}
		s := &Stall{}
		for _, kv := range words[1:] {
			k, val, _ := bytes.Cut(kv, []byte{'='})
			f, _ := strconv.ParseFloat(string(val), 64)
			switch string(k) {
			case "avg10":
				s.Avg10 = f
			case "avg60":
				s.Avg60 = f
			case "avg300":
				s.Avg300 = f
			case "total":
				s.Total = number(val, 0)
			}
		}
		switch string(words[0]) {
		case "some":
			p.Some = s
		case "full":
			p.Full = s
		}
	}
	return p
}
