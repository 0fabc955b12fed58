// Command bench measures berth beside containerd with runc on the same machine, in
// one run and in turns, and prints the ratios as tables in markdown. `make bench`
// runs it; docs/benchmarks.md keeps what it printed. It needs root, and the tools
// of test/tools on PATH.
//
//	bench [-only run,exec,pull,memory,cri] [-runs N] [-pods N]
//
// Absolute times depend on the machine and on what else it does; the ratios of one
// run are what counts.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// options are the command line's.
type options struct {
	only []string
	runs int // of quick things; slow ones get a share
	pods int // of a batch, and containers for memory
	bin  string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	var o options
	only := flag.String("only", "", "parts to run, with commas: run, exec, pull, memory, cri (default all)")
	flag.IntVar(&o.runs, "runs", 30, "`times` that quick things are run on each side")
	flag.IntVar(&o.pods, "pods", 105, "`count` of pods in a batch and of containers for memory")
	flag.StringVar(&o.bin, "bin", "", "`directory` of berth and berth-shim (default: bin in the repository)")
	flag.Parse()
	if *only != "" {
		o.only = strings.Split(*only, ",")
	}
	if os.Geteuid() != 0 {
		return errors.New("run this as root: it runs containers and drops caches")
	}
	if o.bin == "" {
		out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
		if err != nil {
			return fmt.Errorf("find the repository: %w", err)
		}
		o.bin = filepath.Join(strings.TrimSpace(string(out)), "bin")
	}
	b, err := newBench(ctx, o)
	if err != nil {
		return err
	}
	defer b.close()
	fmt.Printf("%s\n\n", machine())
	parts := []struct {
		name string
		fn   func(context.Context) error
	}{{"run", b.runs}, {"exec", b.execs}, {"pull", b.pulls}, {"memory", b.memory}, {"cri", b.cri}}
	for _, p := range parts {
		if len(o.only) > 0 && !slices.Contains(o.only, p.name) {
			continue
		}
		if err := p.fn(ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

// machine says on what was measured.
func machine() string {
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	model := ""
	info, _ := os.ReadFile("/proc/cpuinfo")
	cpus := 0
	for line := range strings.Lines(string(info)) {
		if strings.HasPrefix(line, "processor") {
			cpus++
		}
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
			model = strings.TrimSpace(v)
		}
	}
	return fmt.Sprintf("Machine: %d × %s, Linux %s. containerd 2.4.2, runc 1.5.2.", cpus, model, strings.TrimSpace(string(kernel)))
}
