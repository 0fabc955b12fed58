package debug

import (
	"bytes"
	"context"
	"os"
	"runtime"
	"runtime/metrics"
	"strconv"
	"syscall"
	"time"
)

// Build is a source of what this program is.
func Build(version, revision string) Source {
	return func(_ context.Context, p *Page) {
		l := []Label{{"revision", revision}, {"version", version}}
		p.Counter("containerd_build_info_total", "The daemon's version, under the name that dashboards for containerd ask for.", 1, l...)
		p.Gauge("berth_build_info", "The daemon's version.", 1, l...)
	}
}

// goNames are the runtime's numbers under the names of the usual Go collector.
var goNames = []struct{ from, name, help string }{
	{"/sched/goroutines:goroutines", "go_goroutines", "Goroutines."},
	{"/memory/classes/heap/objects:bytes", "go_memstats_alloc_bytes", "Bytes of live and dead objects."},
	{"/memory/classes/heap/objects:bytes", "go_memstats_heap_alloc_bytes", "Bytes of live and dead objects."},
	{"/memory/classes/heap/unused:bytes", "go_memstats_heap_unused_bytes", "Bytes reserved for objects."},
	{"/memory/classes/heap/free:bytes", "go_memstats_heap_idle_bytes", "Bytes that could go back to the system."},
	{"/memory/classes/heap/released:bytes", "go_memstats_heap_released_bytes", "Bytes that went back to the system."},
	{"/memory/classes/heap/stacks:bytes", "go_memstats_stack_inuse_bytes", "Bytes of stacks."},
	{"/memory/classes/total:bytes", "go_memstats_sys_bytes", "Bytes taken from the system."},
	{"/gc/heap/goal:bytes", "go_memstats_next_gc_bytes", "Heap size at which collection begins."},
	{"/gc/heap/objects:objects", "go_memstats_heap_objects", "Objects."},
}

// Process is a source of what the daemon itself uses.
func Process(_ context.Context, p *Page) {
	samples := make([]metrics.Sample, len(goNames))
	for i, n := range goNames {
		samples[i].Name = n.from
	}
	metrics.Read(samples)
	for i, n := range goNames {
		if v := samples[i].Value; v.Kind() == metrics.KindUint64 {
			p.Gauge(n.name, n.help, float64(v.Uint64()))
		}
	}
	p.Gauge("go_info", "Version of Go.", 1, Label{"version", runtime.Version()})

	var use syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &use); err == nil {
		t := time.Duration(use.Utime.Nano() + use.Stime.Nano())
		p.Counter("process_cpu_seconds_total", "Time on processors.", t.Seconds())
	}
	if fds, err := os.ReadDir("/proc/self/fd"); err == nil {
		p.Gauge("process_open_fds", "Open files.", float64(len(fds)-1)) // but for the one that reads them
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err == nil {
		p.Gauge("process_max_fds", "Most open files.", float64(limit.Cur))
	}
	stat(p)
}

// stat reads sizes, threads and the start out of /proc/self/stat (proc(5)).
func stat(p *Page) {
	data, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return
	}
	f := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	field := func(n int) float64 { // as proc(5) numbers them, from 3
		if n-3 >= len(f) {
			return 0
		}
		v, _ := strconv.ParseFloat(string(f[n-3]), 64)
		return v
	}
	const hertz = 100 // USER_HZ of every architecture that Go runs on
	p.Gauge("go_threads", "Threads.", field(20))
	p.Gauge("process_virtual_memory_bytes", "Address space.", field(23))
	p.Gauge("process_resident_memory_bytes", "Memory, shared with others or not.", field(24)*float64(os.Getpagesize()))
	if up, err := os.ReadFile("/proc/stat"); err == nil {
		if _, rest, ok := bytes.Cut(up, []byte("\nbtime ")); ok {
			line, _, _ := bytes.Cut(rest, []byte("\n"))
			boot, _ := strconv.ParseFloat(string(line), 64)
			p.Gauge("process_start_time_seconds", "Start, since 1970.", boot+field(22)/hertz)
		}
	}
}
