package metric

import (
	"github.com/berthd/berth/host/cgroup"
	"github.com/berthd/berth/host/netns"
)

func value(of func(*Sample) uint64) func(*Sample) []point {
	return func(s *Sample) []point { return one(of(s)) }
}

// pods are the metrics of a pod as a whole.
var pods = []metric{
	{"container_network_receive_bytes_total", "Bytes received", counter, []string{"interface"}, network(func(c netns.Counter) uint64 { return c.RxBytes })},
	{"container_network_receive_packets_total", "Packets received", counter, []string{"interface"}, network(func(c netns.Counter) uint64 { return c.RxPackets })},
	{"container_network_receive_packets_dropped_total", "Packets dropped while receiving", counter, []string{"interface"}, network(func(c netns.Counter) uint64 { return c.RxDropped })},
	{"container_network_receive_errors_total", "Errors while receiving", counter, []string{"interface"}, network(func(c netns.Counter) uint64 { return c.RxErrors })},
	{"container_network_transmit_bytes_total", "Bytes sent", counter, []string{"interface"}, network(func(c netns.Counter) uint64 { return c.TxBytes })},
	{"container_network_transmit_packets_total", "Packets sent", counter, []string{"interface"}, network(func(c netns.Counter) uint64 { return c.TxPackets })},
	{"container_network_transmit_packets_dropped_total", "Packets dropped while sending", counter, []string{"interface"}, network(func(c netns.Counter) uint64 { return c.TxDropped })},
	{"container_network_transmit_errors_total", "Errors while sending", counter, []string{"interface"}, network(func(c netns.Counter) uint64 { return c.TxErrors })},
}

// containers are the metrics of one container.
var containers = []metric{
	{"container_cpu_user_seconds_total", "Processor time in user mode, in seconds", counter, nil, value(func(s *Sample) uint64 { return s.Usage.CPU.User / second })},
	{"container_cpu_system_seconds_total", "Processor time in the kernel, in seconds", counter, nil, value(func(s *Sample) uint64 { return s.Usage.CPU.System / second })},
	{"container_cpu_usage_seconds_total", "Processor time, in seconds", counter, []string{"cpu"}, func(s *Sample) []point { return []point{{s.Usage.CPU.Total / second, []string{"total"}}} }},
	{"container_cpu_cfs_periods_total", "Periods in which the quota counted", counter, nil, value(func(s *Sample) uint64 { return s.Usage.CPU.Periods })},
	{"container_cpu_cfs_throttled_periods_total", "Periods in which the quota stopped it", counter, nil, value(func(s *Sample) uint64 { return s.Usage.CPU.Throttled })},
	{"container_cpu_cfs_throttled_seconds_total", "Time for which the quota stopped it, in seconds", counter, nil, value(func(s *Sample) uint64 { return s.Usage.CPU.ThrottledTime / second })},
	{"container_memory_cache", "Page cache, in bytes", gauge, nil, value(func(s *Sample) uint64 { return s.Usage.Memory.Cache })},
	{"container_memory_rss", "Anonymous memory, in bytes", gauge, nil, value(func(s *Sample) uint64 { return s.Usage.Memory.RSS })},
	{"container_memory_swap", "Swap in use, in bytes", gauge, nil, value(func(s *Sample) uint64 { return s.Usage.Memory.Swap })},
	{"container_memory_kernel_usage", "Memory of the kernel, in bytes", gauge, nil, value(func(s *Sample) uint64 { return s.Usage.Memory.Kernel })},
	{"container_memory_mapped_file", "Mapped files, in bytes", gauge, nil, value(func(s *Sample) uint64 { return s.Usage.Memory.Mapped })},
	{"container_memory_failcnt", "How often the memory limit was met", counter, nil, value(func(s *Sample) uint64 { return s.Usage.Memory.Failed })},
	{"container_memory_usage_bytes", "Memory in use with the page cache, in bytes", gauge, nil, value(func(s *Sample) uint64 { return s.Usage.Memory.Usage })},
	{"container_memory_max_usage_bytes", "Most memory that was ever in use, in bytes", gauge, nil, value(func(s *Sample) uint64 { return limit(s.Usage.Memory.Peak) })},
	{"container_memory_working_set_bytes", "Memory in use that cannot be taken back at once, in bytes", gauge, nil, value(func(s *Sample) uint64 { return s.Usage.Memory.WorkingSet })},
	{"container_memory_total_active_file_bytes", "Files in active use, in bytes", gauge, nil, value(func(s *Sample) uint64 { return s.Usage.Memory.ActiveFile })},
	{"container_memory_total_inactive_file_bytes", "Files not in active use, in bytes", gauge, nil, value(func(s *Sample) uint64 { return s.Usage.Memory.InactiveFile })},
	{"container_memory_failures_total", "Page faults", counter, []string{"failure_type", "scope"}, faults},
	{"container_oom_events_total", "Processes killed for want of memory", counter, nil, value(func(s *Sample) uint64 { return s.Usage.OOMKills })},
	{"container_hugetlb_usage_bytes", "Huge pages in use, in bytes", gauge, []string{"pagesize"}, huge(func(h cgroup.Hugetlb) uint64 { return h.Usage })},
	{"container_hugetlb_max_usage_bytes", "Most huge pages that were ever in use, in bytes", gauge, []string{"pagesize"}, huge(func(h cgroup.Hugetlb) uint64 { return limit(h.Max) })},
	{"container_fs_reads_bytes_total", "Bytes read from devices", counter, []string{"device"}, disk(func(u cgroup.IOUsage) uint64 { return u.ReadBytes })},
	{"container_fs_reads_total", "Reads from devices", counter, []string{"device"}, disk(func(u cgroup.IOUsage) uint64 { return u.Reads })},
	{"container_fs_writes_bytes_total", "Bytes written to devices", counter, []string{"device"}, disk(func(u cgroup.IOUsage) uint64 { return u.WriteBytes })},
	{"container_fs_writes_total", "Writes to devices", counter, []string{"device"}, disk(func(u cgroup.IOUsage) uint64 { return u.Writes })},
	{"container_blkio_device_usage_total", "Bytes by device and operation", counter, []string{"device", "major", "minor", "operation"}, blkio},
	{"container_fs_usage_bytes", "Bytes of the container's own layer", gauge, []string{"device"}, layer(func(s *Sample) uint64 { return s.LayerBytes })},
	{"container_fs_limit_bytes", "Bytes that the file system of layers can hold", gauge, []string{"device"}, layer(func(s *Sample) uint64 { return s.Disk.Bytes })},
	{"container_fs_inodes_total", "Inodes that the file system of layers can hold", gauge, []string{"device"}, layer(func(s *Sample) uint64 { return s.Disk.Inodes })},
	{"container_fs_inodes_free", "Free inodes of the file system of layers", gauge, []string{"device"}, layer(func(s *Sample) uint64 { return s.Disk.FreeInodes })},
	{"container_processes", "Processes", gauge, nil, value(func(s *Sample) uint64 { return uint64(len(s.Usage.Processes)) })},
	{"container_threads", "Threads", gauge, nil, value(func(s *Sample) uint64 { return s.Usage.Threads })},
	{"container_threads_max", "Most threads that are allowed; 0: no limit", gauge, nil, value(func(s *Sample) uint64 { return limit(s.Usage.ThreadsLimit) })},
	{"container_file_descriptors", "Open file descriptors", gauge, nil, value(func(s *Sample) uint64 { return s.Files })},
	{"container_sockets", "Open sockets", gauge, nil, value(func(s *Sample) uint64 { return s.Sockets })},
	{"container_ulimits_soft", "Soft limits of the first process", gauge, []string{"ulimit"}, func(s *Sample) []point { return []point{{s.OpenFiles, []string{"max_open_files"}}} }},
	{"container_start_time_seconds", "When it was started, in seconds since 1970", gauge, nil, value(func(s *Sample) uint64 { return positive(s.Started.Unix()) })},
	{"container_last_seen", "When this was read, in seconds since 1970", gauge, nil, value(func(s *Sample) uint64 { return positive(s.Usage.At.Unix()) })},
	{"container_spec_cpu_period", "Length of a quota's period, in µs", gauge, nil, value(func(s *Sample) uint64 { return positive(s.Resources.GetCpuPeriod()) })},
	{"container_spec_cpu_quota", "Quota in each period, in µs", gauge, nil, value(func(s *Sample) uint64 { return positive(s.Resources.GetCpuQuota()) })},
	{"container_spec_cpu_shares", "Weight of processor time", gauge, nil, value(func(s *Sample) uint64 { return positive(s.Resources.GetCpuShares()) })},
	{"container_spec_memory_limit_bytes", "Memory limit; 0: none", gauge, nil, value(func(s *Sample) uint64 { return positive(s.Resources.GetMemoryLimitInBytes()) })},
	{"container_spec_memory_reservation_limit_bytes", "Memory reservation; 0: none", gauge, nil, value(func(*Sample) uint64 { return 0 })},
	{"container_spec_memory_swap_limit_bytes", "Limit of memory and swap together; 0: none", gauge, nil, value(func(s *Sample) uint64 { return positive(s.Resources.GetMemorySwapLimitInBytes()) })},
	{"container_pressure_cpu_stalled_seconds_total", "Time in which no process got a processor, in seconds", counter, nil, stalled(func(u *cgroup.Usage) *cgroup.Pressure { return u.CPUWait }, true)},
	{"container_pressure_cpu_waiting_seconds_total", "Time in which some process waited for a processor, in seconds", counter, nil, stalled(func(u *cgroup.Usage) *cgroup.Pressure { return u.CPUWait }, false)},
	{"container_pressure_memory_stalled_seconds_total", "Time in which all processes waited for memory, in seconds", counter, nil, stalled(func(u *cgroup.Usage) *cgroup.Pressure { return u.MemWait }, true)},
	{"container_pressure_memory_waiting_seconds_total", "Time in which some process waited for memory, in seconds", counter, nil, stalled(func(u *cgroup.Usage) *cgroup.Pressure { return u.MemWait }, false)},
	{"container_pressure_io_stalled_seconds_total", "Time in which all processes waited for devices, in seconds", counter, nil, stalled(func(u *cgroup.Usage) *cgroup.Pressure { return u.IOWait }, true)},
	{"container_pressure_io_waiting_seconds_total", "Time in which some process waited for devices, in seconds", counter, nil, stalled(func(u *cgroup.Usage) *cgroup.Pressure { return u.IOWait }, false)},
}

// faults are told twice, as cAdvisor does: a container has no groups below its own.
func faults(s *Sample) []point {
	var out []point
	for _, scope := range []string{"container", "hierarchy"} {
		out = append(out, point{s.Usage.Memory.Faults, []string{"pgfault", scope}}, point{s.Usage.Memory.MajorFaults, []string{"pgmajfault", scope}})
	}
	return out
}

func huge(of func(cgroup.Hugetlb) uint64) func(*Sample) []point {
	return func(s *Sample) []point {
		var out []point
		for _, h := range s.Usage.Huge {
			out = append(out, point{of(h), []string{h.PageSize}})
		}
		return out
	}
}

func blkio(s *Sample) []point {
	var out []point
	for _, io := range s.Usage.IO {
		major, minor := number(io.Major), number(io.Minor)
		out = append(out, point{io.ReadBytes, []string{major + ":" + minor, major, minor, "Read"}}, point{io.WriteBytes, []string{major + ":" + minor, major, minor, "Write"}})
	}
	return out
}
