package cgroup

import (
	"bytes"
	"os"
	"strconv"
	"strings"
)

// V1 is what version 1 counts. Names and order of the arrays are those of
// io.containerd.cgroups.v1.Metrics, whose writer is shim/wire.
type V1 struct {
	Hugetlb []Hugetlb
	Pids    *Pids
	CPU     CPU1
	Memory  *Memory1
	OOM     *[3]uint64 // oom_kill_disable, under_oom, oom_kill
	Blkio   *Blkio
	RDMA    *RDMA
}

// Pids counts processes.
type Pids struct{ Current, Limit uint64 }

// Hugetlb counts huge pages of one size; bytes.
type Hugetlb struct {
	PageSize           string // "2MB"
	Usage, Max, Failed uint64
}

// CPU1 is in nanoseconds.
type CPU1 struct {
	Total, Kernel, User uint64
	PerCPU              []uint64
	Throttle            [3]uint64 // periods, throttled periods, throttled time
}

// Memory1 is in bytes.
type Memory1 struct {
	Stat    [32]uint64 // as memory1Names lists them
	Entries [4]Entry1  // memory, memory and swap, kernel, kernel tcp
}

// Entry1 is one accounted resource.
type Entry1 struct{ Limit, Usage, Max, Failed uint64 }

// Blkio lists what block devices did.
type Blkio struct {
	// bytes, operations, queued, service time, wait time, merged, time, sectors
	Lists [8][]BlkioEntry
}

// BlkioEntry is one device and operation.
type BlkioEntry struct {
	Op, Device          string
	Major, Minor, Value uint64
}

// RDMA lists handles and objects per device.
type RDMA struct{ Current, Limit []RDMAEntry }

// RDMAEntry is one device.
type RDMAEntry struct {
	Device           string
	Handles, Objects uint32
}

var memory1Names = []string{
	"cache", "rss", "rss_huge", "mapped_file", "dirty", "writeback", "pgpgin", "pgpgout", "pgfault", "pgmajfault",
	"inactive_anon", "active_anon", "inactive_file", "active_file", "unevictable",
	"hierarchical_memory_limit", "hierarchical_memsw_limit",
	"total_cache", "total_rss", "total_rss_huge", "total_mapped_file", "total_dirty", "total_writeback",
	"total_pgpgin", "total_pgpgout", "total_pgfault", "total_pgmajfault",
	"total_inactive_anon", "total_active_anon", "total_inactive_file", "total_active_file", "total_unevictable",
}

// userHZ is the unit of cpuacct.stat: 1/100 s on every architecture Go runs on.
const userHZ = 100

// Unified says which of StatV1 and StatV2 applies.
func (g *Group) Unified() bool { return g.unified }

// StatV1 reads all counters. What cannot be read is zero or nil.
func (g *Group) StatV1() *V1 {
	var r reader
	v := &V1{}
	if d := g.dirs["pids"]; d != "" {
		// "max" is 0 here, as containerd reports it for version 1.
		v.Pids = &Pids{r.number(d, "pids.current", 0), r.number(d, "pids.max", 0)}
	}
	if d := g.dirs["cpuacct"]; d != "" {
		var ticks [2]uint64
		table(r.read(d, "cpuacct.stat"), []string{"user", "system"}, ticks[:])
		v.CPU.User, v.CPU.Kernel = ticks[0]*(1e9/userHZ), ticks[1]*(1e9/userHZ)
		v.CPU.Total = r.number(d, "cpuacct.usage", 0)
		for _, w := range bytes.Fields(r.read(d, "cpuacct.usage_percpu")) {
			v.CPU.PerCPU = append(v.CPU.PerCPU, number(w, 0))
		}
	}
	if d := g.dirs["cpu"]; d != "" {
		table(r.read(d, "cpu.stat"), []string{"nr_periods", "nr_throttled", "throttled_time"}, v.CPU.Throttle[:])
	}
	if d := g.dirs["memory"]; d != "" {
		v.Memory, v.OOM = memory1(&r, d)
	}
	if d := g.dirs["blkio"]; d != "" {
		v.Blkio = blkio(&r, d, g.host.Proc)
	}
	if d := g.dirs["rdma"]; d != "" {
		v.RDMA = rdma(&r, d)
	}
	if d := g.dirs["hugetlb"]; d != "" {
		for _, size := range hugeSizes() {
			p := "hugetlb." + size
			v.Hugetlb = append(v.Hugetlb, Hugetlb{
				PageSize: size,
				Usage:    r.number(d, p+".usage_in_bytes", 0),
				Max:      r.number(d, p+".max_usage_in_bytes", 0),
				Failed:   r.number(d, p+".failcnt", 0),
			})
		}
	}
	return v
}

func memory1(r *reader, d string) (*Memory1, *[3]uint64) {
	m, oom := &Memory1{}, &[3]uint64{}
	table(r.read(d, "memory.stat"), memory1Names, m.Stat[:])
	table(r.read(d, "memory.oom_control"), []string{"oom_kill_disable", "under_oom", "oom_kill"}, oom[:])
	for i, module := range []string{"memory.", "memory.memsw.", "memory.kmem.", "memory.kmem.tcp."} {
		m.Entries[i] = Entry1{
			Limit:  r.number(d, module+"limit_in_bytes", 0),
			Usage:  r.number(d, module+"usage_in_bytes", 0),
			Max:    r.number(d, module+"max_usage_in_bytes", 0),
			Failed: r.number(d, module+"failcnt", 0),
		}
	}
	return m, oom
}

// blkioFiles are in the order of Blkio.Lists.
var blkioFiles = [8]string{
	"io_service_bytes_recursive", "io_serviced_recursive", "io_queued_recursive", "io_service_time_recursive",
	"io_wait_time_recursive", "io_merged_recursive", "time_recursive", "sectors_recursive",
}

// blkio reads the files of the proportional scheduler where the kernel has them
// and they say something, else those of the throttle.
func blkio(r *reader, d, proc string) *Blkio {
	b := &Blkio{}
	found := false
	for i, name := range blkioFiles {
		b.Lists[i] = blkioEntries(r.read(d, "blkio."+name))
		found = found || len(b.Lists[i]) > 0
	}
	if !found {
		b.Lists[0] = blkioEntries(r.read(d, "blkio.throttle.io_service_bytes"))
		b.Lists[1] = blkioEntries(r.read(d, "blkio.throttle.io_serviced"))
	}
	names := partitions(r.read(proc, "partitions"))
	for _, list := range b.Lists {
		for i := range list {
			list[i].Device = names[[2]uint64{list[i].Major, list[i].Minor}]
		}
	}
	return b
}

// blkioEntries reads lines of "major:minor [op] value"; "Total value" is skipped.
func blkioEntries(data []byte) []BlkioEntry {
	var out []BlkioEntry
	for line := range bytes.Lines(data) {
		words := strings.FieldsFunc(string(line), func(c rune) bool { return c == ' ' || c == ':' || c == '\n' })
		if len(words) < 3 || len(words) > 4 {
			continue
		}
		e := BlkioEntry{
			Major: number([]byte(words[0]), 0),
			Minor: number([]byte(words[1]), 0),
			Value: number([]byte(words[len(words)-1]), 0),
		}
		if len(words) == 4 {
			e.Op = words[2]
		}
		out = append(out, e)
	}
	return out
}

// partitions reads /proc/partitions: "major minor blocks name".
func partitions(data []byte) map[[2]uint64]string {
	out := map[[2]uint64]string{}
	for line := range bytes.Lines(data) {
		w := bytes.Fields(line)
		if len(w) != 4 || w[0][0] < '0' || w[0][0] > '9' {
			continue
		}
		key := [2]uint64{number(w[0], 0), number(w[1], 0)}
		if _, ok := out[key]; !ok {
			out[key] = "/dev/" + string(w[3])
		}
	}
	return out
}

func rdma(r *reader, d string) *RDMA {
	return &RDMA{rdmaEntries(r.read(d, "rdma.current")), rdmaEntries(r.read(d, "rdma.max"))}
}

// rdmaEntries reads lines of "device hca_handle=N hca_object=N"; max is 2³²−1.
func rdmaEntries(data []byte) []RDMAEntry {
	var out []RDMAEntry
	for line := range bytes.Lines(data) {
		w := strings.Fields(string(line))
		if len(w) != 3 {
			continue
		}
		e := RDMAEntry{Device: w[0]}
		for _, kv := range w[1:] {
			k, v, _ := strings.Cut(kv, "=")
			n := uint32(min(number([]byte(v), 1<<32-1), 1<<32-1))
			switch k {
			case "hca_handle":
				e.Handles = n
			case "hca_object":
				e.Objects = n
			}
		}
		out = append(out, e)
	}
	return out
}

// hugeSizes names the sizes of huge pages the way cgroup files do.
func hugeSizes() []string {
	entries, err := os.ReadDir("/sys/kernel/mm/hugepages")
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		kb, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(e.Name(), "hugepages-"), "kB"))
		if err != nil {
			continue
		}
		switch {
		case kb >= 1<<20:
			out = append(out, strconv.Itoa(kb>>20)+"GB")
		case kb >= 1<<10:
			out = append(out, strconv.Itoa(kb>>10)+"MB")
		default:
			out = append(out, strconv.Itoa(kb)+"KB")
		}
	}
	return out
}
