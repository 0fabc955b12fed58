package lab

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Daemon is a berth daemon with its own root, state and socket.
type Daemon struct {
	*Process
	lab    *Lab
	Root   string
	State  string
	Socket string
	args   []string
	Env    []string
}

// Daemon starts a daemon and waits until it answers. Extra arguments are given to
// `berth daemon`.
func (l *Lab) Daemon(args ...string) *Daemon {
	l.T.Helper()
	d := &Daemon{lab: l, Root: filepath.Join(l.Dir, "root"), State: filepath.Join(l.Dir, "state"), Socket: filepath.Join(l.Dir, "berth.sock"), args: args}
	l.Ledger() // before the daemon: it is compared after its end
	d.Start()
	return d
}

// Start starts the daemon, again if it ran before, and returns how long it took
// to answer.
func (d *Daemon) Start() time.Duration {
	d.lab.T.Helper()
	took, alive := d.TryStart()
	if !alive {
		d.lab.T.Fatalf("the daemon ended:\n%s", d.Log)
	}
	return took
}

// TryStart is Start of a daemon that may die before it answers.
func (d *Daemon) TryStart() (took time.Duration, alive bool) {
	d.lab.T.Helper()
	args := append([]string{"daemon", "--root", d.Root, "--state", d.State, "--address", d.Socket}, d.args...)
	cmd := exec.Command(filepath.Join(d.lab.Bin, "berth"), args...)
	cmd.Env = append(os.Environ(), d.Env...)
	begin := time.Now()
	d.Process = Start(d.lab.T, cmd)
	Until(d.lab.T, 20*time.Second, "the daemon answers", func() bool {
		select {
		case <-d.Done():
			return true
		default:
		}
		c, err := net.Dial("unix", d.Socket)
		if err != nil {
			return false
		}
		_ = c.Close()
		alive = true
		return true
	})
	took = time.Since(begin)
	if !alive {
		return took, false
	}
	p := d.Process
	d.lab.Ledger().serve(d.Socket, d.State, p.Done())
	d.learn(p)
	d.lab.T.Cleanup(func() { d.audit(p) })
	return took, true
}

// Environ makes clients talk to this daemon.
func (d *Daemon) Environ() []string {
	return []string{"CONTAINERD_ADDRESS=" + d.Socket, "BERTH_ADDRESS=" + d.Socket, "PATH=" + d.lab.Bin + ":" + os.Getenv("PATH")}
}

// Berth runs a berth command against the daemon and returns its output.
func (d *Daemon) Berth(args ...string) (string, error) {
	return d.run(filepath.Join(d.lab.Bin, "berth"), args...)
}

// Ctr runs ctr against the daemon and returns its output.
func (d *Daemon) Ctr(args ...string) (string, error) {
	return d.run(Tool(d.lab.T, "ctr"), args...)
}

// MustCtr is Ctr that must not fail.
func (d *Daemon) MustCtr(args ...string) string {
	d.lab.T.Helper()
	out, err := d.Ctr(args...)
	if err != nil {
		d.lab.T.Fatalf("ctr %s: %v\n%s\ndaemon:\n%s", strings.Join(args, " "), err, out, d.Log)
	}
	return out
}

func (d *Daemon) run(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), d.Environ()...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}
