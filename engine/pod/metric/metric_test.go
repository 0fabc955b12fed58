package metric

import (
	"testing"
	"time"

	"github.com/berthd/berth/host/cgroup"
	"github.com/berthd/berth/host/netns"
)

// TestDescriptorsFitMetrics: each metric is described once, and has a value for each
// key of its description.
func TestDescriptorsFitMetrics(t *testing.T) {
	keys := map[string]int{}
	for _, d := range Descriptors() {
		if _, twice := keys[d.GetName()]; twice || d.GetHelp() == "" {
			t.Errorf("%s: described twice or without help", d.GetName())
		}
		keys[d.GetName()] = len(d.GetLabelKeys())
	}
	u := cgroup.Usage{
		At: time.Unix(100, 0), IO: []cgroup.IOUsage{{Major: 8, ReadBytes: 1}}, Huge: []cgroup.Hugetlb{{PageSize: "2MB"}}, ThreadsLimit: cgroup.NoLimit,
		CPUWait: &cgroup.Pressure{Some: &cgroup.Stall{Total: 3e6}, Full: &cgroup.Stall{}},
		MemWait: &cgroup.Pressure{Some: &cgroup.Stall{}, Full: &cgroup.Stall{}}, IOWait: &cgroup.Pressure{Some: &cgroup.Stall{}, Full: &cgroup.Stall{}},
	}
	u.CPU.Total, u.Memory.Peak = 5e9, cgroup.NoLimit
	s := Sample{Usage: u, Net: []netns.Counter{{Name: "eth0", RxBytes: 7}}, Device: "/d", Started: time.Unix(50, 0)}
	got := map[string]uint64{}
	for _, m := range append(OfContainer(Labels{}, s), OfPod(Labels{}, s)...) {
		if n, ok := keys[m.GetName()]; !ok || len(m.GetLabelValues()) != n {
			t.Errorf("%s: %d values for %d keys", m.GetName(), len(m.GetLabelValues()), n)
		}
		if m.GetTimestamp() != u.At.UnixNano() {
			t.Errorf("%s: time %d", m.GetName(), m.GetTimestamp())
		}
		got[m.GetName()] = m.GetValue().GetValue()
	}
	for name := range keys {
		if _, ok := got[name]; !ok {
			t.Errorf("%s has no value", name)
		}
	}
	for name, want := range map[string]uint64{
		"container_cpu_usage_seconds_total": 5, "container_memory_max_usage_bytes": 0, "container_threads_max": 0, "container_network_receive_bytes_total": 7,
		"container_pressure_cpu_waiting_seconds_total": 3, "container_start_time_seconds": 50, "container_last_seen": 100,
	} {
		if got[name] != want {
			t.Errorf("%s is %d, want %d", name, got[name], want)
		}
	}
}

// TestNothingRead: a host without devices, huge pages and pressure has no such metrics.
func TestNothingRead(t *testing.T) {
	for _, m := range OfContainer(Labels{}, Sample{}) {
		switch m.GetName() {
		case "container_fs_reads_total", "container_hugetlb_usage_bytes", "container_pressure_io_stalled_seconds_total":
			t.Errorf("%s without a reading", m.GetName())
		}
	}
	if all := OfPod(Labels{}, Sample{}); len(all) != 0 {
		t.Errorf("network of a pod without one: %v", all)
	}
}
