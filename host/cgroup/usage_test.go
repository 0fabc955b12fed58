package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// tree writes files below a directory and makes a group of each given controller's
// directory.
func usageTree(t *testing.T, unified bool, files map[string]string) *Group {
	t.Helper()
	root := t.TempDir()
	g := &Group{host: Host{Root: root, Proc: t.TempDir()}, unified: unified, dirs: map[string]string{}}
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if unified {
			g.dirs[""] = filepath.Dir(path)
		} else {
			g.dirs[filepath.Dir(name)] = filepath.Dir(path)
		}
	}
	return g
}

// TestUsage reads the same use of both versions, whole and in brief.
func TestUsage(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		name    string
		unified bool
		files   map[string]string
		want    MemoryUsage
	}{
		{"v1", false, map[string]string{
			"cpuacct/cpuacct.usage": "5000000000\n", "cpuacct/cpuacct.stat": "user 300\nsystem 200\n",
			"cpu/cpu.stat":                 "nr_periods 10\nnr_throttled 2\nthrottled_time 7000\n",
			"memory/memory.stat":           fmt.Sprintf("cache 1\nrss 2\ntotal_cache %d\ntotal_rss %d\ntotal_mapped_file 4096\ntotal_pgfault 11\ntotal_pgmajfault 3\ntotal_inactive_file %d\ntotal_active_file 5\n", 6*mib, 3*mib, 4*mib),
			"memory/memory.usage_in_bytes": fmt.Sprint(10 * mib), "memory/memory.limit_in_bytes": fmt.Sprint(64 * mib),
			"memory/memory.memsw.usage_in_bytes": fmt.Sprint(11 * mib), "memory/memory.memsw.limit_in_bytes": "9223372036854771712",
			"pids/pids.current": "4\n", "pids/pids.max": "max\n",
		}, MemoryUsage{Usage: 10 * mib, Limit: 64 * mib, WorkingSet: 6 * mib, RSS: 3 * mib, Cache: 6 * mib, Mapped: 4096, Swap: mib, SwapLimit: NoLimit, ActiveFile: 5, InactiveFile: 4 * mib, Faults: 11, MajorFaults: 3}},
		{"v2", true, map[string]string{
			"g/cpu.stat":       "usage_usec 5000000\nuser_usec 3000000\nsystem_usec 2000000\nnr_periods 10\nnr_throttled 2\nthrottled_usec 7\n",
			"g/memory.stat":    fmt.Sprintf("anon %d\nfile %d\nfile_mapped 4096\ninactive_file %d\nactive_file 5\npgfault 11\npgmajfault 3\n", 3*mib, 6*mib, 4*mib),
			"g/memory.current": fmt.Sprint(10 * mib), "g/memory.max": fmt.Sprint(64 * mib), "g/memory.swap.current": fmt.Sprint(mib), "g/memory.swap.max": "max\n",
			"g/pids.current": "4\n", "g/pids.max": "max\n", "g/memory.pressure": "some avg10=1.00 avg60=2.00 avg300=3.00 total=4\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1\n",
		}, MemoryUsage{Usage: 10 * mib, Limit: 64 * mib, WorkingSet: 6 * mib, RSS: 3 * mib, Cache: 6 * mib, Mapped: 4096, Swap: mib, SwapLimit: NoLimit, ActiveFile: 5, InactiveFile: 4 * mib, Faults: 11, MajorFaults: 3}},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := usageTree(t, c.unified, c.files)
			whole, brief := g.Usage(), g.Brief()
			if whole.CPU.Total != 5e9 || whole.CPU.User != 3e9 || whole.CPU.System != 2e9 || whole.CPU.Periods != 10 || whole.CPU.Throttled != 2 || whole.CPU.ThrottledTime != 7000 {
				t.Errorf("processor: %+v", whole.CPU)
			}
			if whole.Threads != 4 || whole.ThreadsLimit != NoLimit {
				t.Errorf("threads: %d of %d", whole.Threads, whole.ThreadsLimit)
			}
			// What there is a most of differs: a version 1 group without the file has none.
			whole.Memory.Peak, brief.Memory.Peak = 0, 0
			if whole.Memory != c.want {
				t.Errorf("memory: %+v\nwant %+v", whole.Memory, c.want)
			}
			if brief.Memory != whole.Memory || brief.CPU.Total != whole.CPU.Total || !reflect.DeepEqual(brief.MemWait, whole.MemWait) {
				t.Errorf("in brief: %+v\nwhole: %+v", brief, whole)
			}
			if c.unified && (brief.MemWait == nil || brief.MemWait.Some.Total != 4) {
				t.Errorf("pressure: %+v", brief.MemWait)
			}
		})
	}
}

func TestUsageOfAGroupThatIsGone(t *testing.T) {
	for _, unified := range []bool{false, true} {
		g := &Group{host: System, unified: unified, dirs: map[string]string{"": "/no/such", "memory": "/no/such", "cpuacct": "/no/such"}}
		if u := g.Brief(); u.CPU.Total != 0 || u.Memory.WorkingSet != 0 || u.At.IsZero() {
			t.Errorf("unified %v: %+v", unified, u)
		}
	}
}
