package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/test/lab"
)

// The most that an idle shim may take, in MiB of PSS: one of many, as the design
// promises, and one alone, which pays for all the pages of the program by itself.
const (
	shimBudget  = 1.5
	aloneBudget = 3.0
)

// TestShimMemory reads what real shims of real containers take when nothing
// happens.
func TestShimMemory(t *testing.T) {
	l := lab.New(t)
	reg := l.Registry()
	oci := filepath.Join(l.Dir, "oci")
	if err := lab.Busybox(oci); err != nil {
		t.Fatal(err)
	}
	image := reg.Host + "/library/busybox:latest"
	lab.Run(t, lab.Tool(t, "skopeo"), "copy", "-q", "--dest-tls-verify=false", "oci:"+oci+":busybox", "docker://"+image)
	d := l.Daemon()
	d.MustCtr("images", "pull", "--plain-http", image)
	var ids []string
	start := func() {
		id := l.Name(fmt.Sprintf("idle%d", len(ids)))
		ids = append(ids, id)
		d.MustCtr("run", "-d", image, id, "sleep", "1000")
		d.MustCtr("tasks", "exec", "--exec-id", "e", id, "true") // one that has worked
	}
	start()
	check := func(what string, budget float64) {
		t.Helper()
		// The runtime clears up for a while: what counts is what it comes to.
		best := 0.0
		for range 20 {
			time.Sleep(500 * time.Millisecond)
			all := shimPSS(l.Dir)
			if len(all) != len(ids) {
				t.Fatalf("%d shims run, want %d", len(all), len(ids))
			}
			sum := series(all).quantile(1)
			if best == 0 || sum < best {
				best = sum
			}
			if best <= budget {
				break
			}
		}
		t.Logf("%s: %.2f MiB", what, best)
		if best > budget {
			t.Errorf("%s: %.2f MiB of PSS, at most %.2f are allowed", what, best, budget)
		}
	}
	check("one idle shim alone", aloneBudget)
	for range 14 {
		start()
	}
	check("the largest of 15 idle shims", shimBudget)
	for _, id := range ids {
		d.MustCtr("tasks", "rm", "-f", id)
		d.MustCtr("containers", "rm", id)
	}
}

// shimPSS gives the PSS of every shim of a lab, in MiB.
func shimPSS(dir string) []float64 {
	procs, _ := os.ReadDir("/proc")
	var out []float64
	for _, p := range procs {
		if _, err := strconv.Atoi(p.Name()); err != nil {
			continue
		}
		cmd, _ := os.ReadFile("/proc/" + p.Name() + "/cmdline")
		name, _, _ := strings.Cut(string(cmd), "\x00")
		if strings.HasSuffix(name, "/berth-shim") && strings.Contains(string(cmd), dir+"/") {
			out = append(out, field("/proc/"+p.Name()+"/smaps_rollup", "Pss:")/1024)
		}
	}
	return out
}
