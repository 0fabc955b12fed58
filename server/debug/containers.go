package debug

import (
	"context"
	"strconv"

	"github.com/berthd/berth/engine/task"
)

// Containers is a source of what each container's cgroup counts, read when asked
// for. Names and labels are those of containerd, so that its dashboards go on; all of
// them are gauges there.
func Containers(read func() []task.Usage) Source {
	return func(_ context.Context, p *Page) {
		for _, u := range read() {
			c := container{p, []Label{{"container_id", u.ID}, {"namespace", u.Namespace}, {"runtime", u.Runtime}}}
			if u.V1 != nil {
				c.v1(u)
			} else {
				c.v2(u)
			}
		}
	}
}

type container struct {
	p      *Page
	labels []Label
}

func (c container) put(name, help string, v uint64, more ...Label) {
	c.p.Gauge("container_"+name, help, float64(v), append(more, c.labels...)...)
}

func (c container) v1(u task.Usage) {
	s := u.V1
	if s.Pids != nil {
		c.pids(s.Pids.Current, s.Pids.Limit)
	}
	c.put("cpu_total_nanoseconds", "Time on processors.", s.CPU.Total)
	c.put("cpu_kernel_nanoseconds", "Time in the kernel.", s.CPU.Kernel)
	c.put("cpu_user_nanoseconds", "Time outside of the kernel.", s.CPU.User)
	for i, v := range s.CPU.PerCPU {
		c.put("per_cpu_nanoseconds", "Time on each processor.", v, Label{"cpu", strconv.Itoa(i)})
	}
	c.put("cpu_throttle_periods_total", "Periods in which the limit counted.", s.CPU.Throttle[0])
	c.put("cpu_throttled_periods_total", "Periods that were cut short.", s.CPU.Throttle[1])
	c.put("cpu_throttled_time_nanoseconds", "Time that was waited for the limit's sake.", s.CPU.Throttle[2])
	if s.Memory != nil {
		s.Memory.EachStat(func(name string, v uint64) { c.put("memory_"+name+"_bytes", "memory.stat: "+name+".", v) })
		for i, what := range []string{"usage", "swap", "kernel", "kerneltcp"} {
			e := s.Memory.Entries[i]
			c.put("memory_"+what+"_limit_bytes", "Limit.", e.Limit)
			c.put("memory_"+what+"_usage_bytes", "Now in use.", e.Usage)
			c.put("memory_"+what+"_max_bytes", "Most that was in use.", e.Max)
			c.put("memory_"+what+"_failcnt_total", "How often the limit was met.", e.Failed)
		}
	}
	if s.OOM != nil {
		c.oom(s.OOM[2])
	}
	if s.Blkio != nil {
		for i, name := range []string{
			"io_service_bytes_recursive_bytes", "io_serviced_recursive_total", "io_queued_recursive_total", "io_service_time_recursive_total",
			"io_wait_time_recursive_total", "io_merged_recursive_total", "io_time_recursive_total", "sectors_recursive_total",
		} {
			for _, e := range s.Blkio.Lists[i] {
				c.put("blkio_"+name, "What block devices did.", e.Value, Label{"op", e.Op}, Label{"device", e.Device},
					Label{"major", text(e.Major)}, Label{"minor", text(e.Minor)})
			}
		}
	}
	for _, h := range s.Hugetlb {
		c.huge(h.PageSize, h.Usage, h.Failed, h.Max)
	}
}

func (c container) v2(u task.Usage) {
	s := u.V2
	c.pids(s.Pids.Current, s.Pids.Limit)
	for i, name := range []string{
		"usage_usec_microseconds", "user_usec_microseconds", "system_usec_microseconds", "nr_periods_total", "nr_throttled_total", "throttled_usec_microseconds",
	} {
		c.put("cpu_"+name, "cpu.stat.", s.CPU[i])
	}
	s.EachStat(func(name string, v uint64) { c.put("memory_"+name+"_bytes", "memory.stat: "+name+".", v) })
	for i, name := range []string{"usage_bytes", "usage_limit_bytes", "swap_usage_bytes", "swap_limit_bytes"} {
		c.put("memory_"+name, "Memory and its limit.", s.Limits[i])
	}
	if s.Events != nil {
		c.oom(s.Events[4])
	}
	for _, e := range s.IO {
		l := []Label{{"major", text(e.Major)}, {"minor", text(e.Minor)}}
		c.put("io_rbytes_bytes", "Bytes that were read.", e.RBytes, l...)
		c.put("io_wbytes_bytes", "Bytes that were written.", e.WBytes, l...)
		c.put("io_rios_total", "Reads.", e.RIOs, l...)
		c.put("io_wios_total", "Writes.", e.WIOs, l...)
	}
	for _, h := range s.Hugetlb {
		c.huge(h.PageSize, h.Usage, h.Failed, h.Max)
	}
}

func (c container) pids(now, limit uint64) {
	c.put("pids_current", "Processes.", now)
	c.put("pids_limit", "Most processes.", limit)
}

func (c container) oom(kills uint64) {
	c.put("memory_oom_total", "Processes that the kernel killed for want of memory.", kills)
}

func (c container) huge(size string, usage, failed, most uint64) {
	l := Label{"page", size}
	c.put("hugetlb_usage_bytes", "Huge pages in use.", usage, l)
	c.put("hugetlb_failcnt_total", "How often their limit was met.", failed, l)
	c.put("hugetlb_max_bytes", "Most huge pages that were in use.", most, l)
}

func text(n uint64) string { return strconv.FormatUint(n, 10) }
