package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// process is one of a side's own: its daemon or a shim.
type process struct {
	pid  string
	shim bool
}

// processes finds a side's daemon and shims, by their command lines.
func (s *side) processes() []process {
	dirs, _ := os.ReadDir("/proc")
	var out []process
	for _, d := range dirs {
		if _, err := strconv.Atoi(d.Name()); err != nil {
			continue
		}
		cmd, err := os.ReadFile(filepath.Join("/proc", d.Name(), "cmdline"))
		if err != nil || !bytes.Contains(cmd, []byte(s.own+"/")) {
			continue
		}
		switch name := filepath.Base(string(bytes.SplitN(cmd, []byte{0}, 2)[0])); name {
		case "berth", "containerd":
			out = append(out, process{d.Name(), false})
		case "berth-shim", "containerd-shim-runc-v2":
			out = append(out, process{d.Name(), true})
		}
	}
	return out
}

// pss sums the proportional set sizes of a side's daemon and of its shims, in MiB
// (Documentation/filesystems/proc.rst, smaps_rollup).
func (s *side) pss() (daemon, shims float64, count int) {
	for _, p := range s.processes() {
		v := field(filepath.Join("/proc", p.pid, "smaps_rollup"), "Pss:") / 1024
		if p.shim {
			shims += v
			count++
		} else {
			daemon += v
		}
	}
	return daemon, shims, count
}

func field(path, name string) float64 {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == name {
			v, _ := strconv.ParseFloat(f[1], 64)
			return v
		}
	}
	return 0
}

// cpu is the CPU time that a side's living processes and their dead children have
// used, in milliseconds (proc_pid_stat(5)).
func (s *side) cpu() float64 {
	total := 0.0
	for _, p := range s.processes() {
		data, err := os.ReadFile("/proc/" + p.pid + "/stat")
		if err != nil {
			continue
		}
		f := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+2:]))
		for _, k := range []int{11, 12, 13, 14} {
			v, _ := strconv.ParseFloat(f[k], 64)
			total += 10 * v // a clock tick is 10 ms
		}
	}
	return total
}

// memory measures fresh daemons, one idle shim, and many.
func (b *bench) memory(ctx context.Context) error {
	progress("memory")
	rows := []row{{what: "daemon, nothing running, PSS MiB"}, {what: "one idle shim, PSS MiB"}, {what: fmt.Sprintf("daemon, %d containers, PSS MiB", b.o.pods)},
		{what: fmt.Sprintf("a shim of %d, PSS MiB", b.o.pods)}, {what: "all together, PSS MiB"}, {what: "daemon's start until it answers, ms"}}
	for _, s := range b.sides {
		v, err := b.memoryOf(ctx, s)
		if err != nil {
			return err
		}
		for n := range rows {
			if s.name == "berth" {
				rows[n].berth = v[n]
			} else {
				rows[n].peer = v[n]
			}
		}
	}
	table("Memory", rows)
	return nil
}

func (b *bench) memoryOf(ctx context.Context, s *side) ([6]series, error) {
	var out [6]series
	for range 5 {
		s.stop()
		begin := time.Now()
		if err := s.start(b); err != nil {
			return out, err
		}
		out[5] = append(out[5], ms(time.Since(begin)))
	}
	time.Sleep(5 * time.Second)
	daemon, _, _ := s.pss()
	out[0] = series{daemon}
	if _, err := s.ctr(ctx, "images", "pull", "--plain-http", b.image("busybox")); err != nil {
		return out, err
	}
	many := func(n int, fn func(id string) error) error {
		var wg sync.WaitGroup
		slots, failed := make(chan struct{}, 4), make(chan error, n)
		for i := range n {
			slots <- struct{}{}
			wg.Add(1)
			// owner: this function waits for it below.
			go func() {
				defer func() { <-slots; wg.Done() }()
				if err := fn(s.id(fmt.Sprintf("mem%d", i))); err != nil {
					failed <- err
				}
			}()
		}
		wg.Wait()
		close(failed)
		return <-failed
	}
	start := func(id string) error {
		_, err := s.ctr(ctx, "run", "-d", b.image("busybox"), id, "sleep", "100000")
		return err
	}
	stop := func(id string) error { s.remove(ctx, id); return nil }
	if err := many(1, start); err != nil {
		return out, err
	}
	time.Sleep(3 * time.Second)
	_, shims, count := s.pss()
	out[1] = series{shims / float64(max(count, 1))}
	if err := many(1, stop); err != nil {
		return out, err
	}
	if err := many(b.o.pods, start); err != nil {
		return out, err
	}
	time.Sleep(5 * time.Second)
	daemon, shims, count = s.pss()
	out[2], out[3], out[4] = series{daemon}, series{shims / float64(max(count, 1))}, series{daemon + shims}
	return out, many(b.o.pods, stop)
}
