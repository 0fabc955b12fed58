package daemon

import (
	"strings"
	"testing"

	"github.com/berthd/berth/engine/task"
	"github.com/berthd/berth/host/cgroup"
	"github.com/berthd/berth/server/debug"
)

// TestContainerNames: cgroups of either version give the names that containerd gives.
func TestContainerNames(t *testing.T) {
	v1 := cgroup.V1{
		Pids: &cgroup.Pids{Current: 3}, CPU: cgroup.CPU1{Total: 7, PerCPU: []uint64{7}}, Memory: &cgroup.Memory1{}, OOM: &[3]uint64{0, 0, 2},
		Blkio: &cgroup.Blkio{}, Hugetlb: []cgroup.Hugetlb{{PageSize: "2MB"}},
	}
	v1.Blkio.Lists[0] = []cgroup.BlkioEntry{{Op: "Read", Device: "/dev/vda", Major: 254, Value: 9}}
	v2 := cgroup.V2{Limits: [6]uint64{11, 12}, Events: &[6]uint64{}, IO: []cgroup.IOEntry{{Major: 8, RBytes: 5}}}
	who1 := task.Usage{Namespace: "n", ID: "c", Runtime: "r", V1: &v1}
	var p debug.Page
	debug.Containers(func() []task.Usage { return []task.Usage{who1, {Namespace: "n", ID: "c", Runtime: "r", V2: &v2}} })(t.Context(), &p)
	var b strings.Builder
	if _, err := p.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	const who = `container_id="c",namespace="n",runtime="r"} `
	for _, want := range []string{
		`container_pids_current{` + who + "3", `container_cpu_total_nanoseconds{` + who + "7", `container_per_cpu_nanoseconds{cpu="0",` + who + "7",
		`container_memory_usage_usage_bytes{` + who, `container_memory_total_inactive_file_bytes{` + who, `container_memory_kerneltcp_failcnt_total{` + who,
		`container_memory_oom_total{` + who + "2", `container_blkio_io_service_bytes_recursive_bytes{op="Read",device="/dev/vda",major="254",minor="0",` + who + "9",
		`container_hugetlb_usage_bytes{page="2MB",` + who,
		`container_cpu_usage_usec_microseconds{` + who, `container_cpu_nr_throttled_total{` + who, `container_memory_usage_bytes{` + who + "11",
		`container_memory_usage_limit_bytes{` + who + "12", `container_memory_pgfault_bytes{` + who, `container_io_rbytes_bytes{major="8",minor="0",` + who + "5",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q", want)
		}
	}
}
