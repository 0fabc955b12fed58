package crash

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berthd/berth/test/lab"
)

// TestExitsWhileDead lets containers write and end while the daemon is dead:
// their output is whole, and their exit codes are told afterwards.
func TestExitsWhileDead(t *testing.T) {
	p := newPlace(t, "")
	p.pull(p.busybox)
	const lines = 20000
	type one struct{ id, log string }
	var all []one
	for n := range 3 {
		c := one{p.Name(fmt.Sprintf("exit%d", n)), filepath.Join(p.Dir, fmt.Sprintf("out%d.log", n))}
		all = append(all, c)
		script := fmt.Sprintf("sleep 0.3; i=0; while [ $i -lt %d ]; do echo line $i; i=$((i+1)); done; exit %d", lines, 40+n)
		p.d.MustCtr("run", "-d", "--log-uri", "file://"+c.log, p.busybox, c.id, "sh", "-c", script)
	}
	pids := p.taskPids()
	p.d.Kill()
	for id, pid := range pids {
		lab.Until(t, 30*time.Second, "container "+id+" ends", func() bool { return syscall.Kill(pid, 0) != nil })
	}
	p.restart()
	for n, c := range all {
		lab.Until(t, 5*time.Second, "the daemon knows that "+c.id+" has ended", func() bool {
			return strings.Contains(p.taskLine(c.id), "STOPPED")
		})
		if out := p.d.MustCtr("tasks", "rm", c.id); !strings.Contains(out, fmt.Sprintf("non-zero exit code %d", 40+n)) {
			t.Errorf("exit of %s: %q, want code %d", c.id, out, 40+n)
		}
		data, err := os.ReadFile(c.log)
		if err != nil {
			t.Fatal(err)
		}
		got := strings.Split(strings.TrimSpace(string(data)), "\n")
		if len(got) != lines || got[0] != "line 0" || got[lines-1] != fmt.Sprintf("line %d", lines-1) {
			t.Errorf("output of %s: %d lines, want %d", c.id, len(got), lines)
		}
	}
	p.giveUp(all[0].id, all[1].id, all[2].id)
	p.removeImage(p.busybox)
	p.nothing(false)
}

// taskPids reads `ctr tasks ls`: TASK PID STATUS.
func (p *place) taskPids() map[string]int {
	out := map[string]int{}
	for line := range strings.Lines(p.d.MustCtr("tasks", "ls")) {
		f := strings.Fields(line)
		if len(f) < 3 || f[0] == "TASK" {
			continue
		}
		pid, err := strconv.Atoi(f[1])
		if err != nil {
			p.t.Fatalf("ctr tasks ls: %q", line)
		}
		out[f[0]] = pid
	}
	return out
}

func (p *place) taskLine(id string) string {
	for line := range strings.Lines(p.d.MustCtr("tasks", "ls")) {
		if f := strings.Fields(line); len(f) > 0 && f[0] == id {
			return line
		}
	}
	return ""
}

// shims finds the shims of this lab's daemon.
func (p *place) shims() []int {
	var out []int
	dirs, _ := os.ReadDir("/proc")
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		data, _ := os.ReadFile("/proc/" + d.Name() + "/cmdline")
		args := strings.Split(string(data), "\x00")
		if strings.HasSuffix(args[0], "/berth-shim") && strings.Contains(string(data), p.Dir+"/") {
			out = append(out, pid)
		}
	}
	return out
}

func (p *place) killShims() int {
	all := p.shims()
	for _, pid := range all {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may just have ended
	}
	return len(all)
}

// TestKillShim kills the shim of a running container: the container is ended and
// cleaned up, with the daemon alive and with the daemon dead.
func TestKillShim(t *testing.T) {
	p := newPlace(t, "")
	p.pull(p.busybox)
	id := p.Name("shim")
	for _, dead := range []bool{false, true} {
		p.d.MustCtr("run", "-d", p.busybox, id, "sleep", "1000")
		pid := p.taskPids()[id]
		if dead {
			p.d.Kill()
		}
		if n := p.killShims(); n != 1 {
			t.Fatalf("%d shims run, want 1", n)
		}
		if dead {
			p.restart()
		}
		lab.Until(t, 10*time.Second, "the container of a dead shim is ended", func() bool { return syscall.Kill(pid, 0) != nil })
		lab.Until(t, 10*time.Second, "its task is gone", func() bool { return p.taskLine(id) == "" })
		p.d.MustCtr("containers", "rm", id)
		p.nothing(true)
		p.run(p.busybox, id)
	}
	p.removeImage(p.busybox)
	p.nothing(false)
}

// TestKillShimAtRandom kills whatever shim there is, its start command too, at
// random moments of runs.
func TestKillShimAtRandom(t *testing.T) {
	r := random(t)
	p := newPlace(t, "")
	p.pull(p.busybox)
	id := p.Name("any")
	takes := duration(func() { p.run(p.busybox, id) })
	for n := range rounds(t) {
		after := moment(r, takes)
		done := make(chan struct{})
		// owner: this loop waits for done below.
		go func() { defer close(done); _ = p.client("run", "--rm", p.busybox, id, "echo", "it works") }()
		time.Sleep(after)
		p.killShims()
		select {
		case <-done:
		case <-time.After(30 * time.Second):
			t.Fatalf("round %d: the client hangs after the death of its shim", n)
		}
		p.giveUp(id)
		p.nothing(true)
		p.run(p.busybox, id)
		if t.Failed() {
			t.Fatalf("round %d, killed after %s of %s", n, after, takes)
		}
	}
}
