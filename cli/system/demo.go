package system

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/cli/client"
	"github.com/berthd/berth/cli/hello"
	"github.com/berthd/berth/cli/session"
)

// The limits of the demo's patience.
const (
	demoStart = 30 * time.Second
	demoStop  = 20 * time.Second
)

const demoText = `
Hello from a container.

This program is the whole of its image: berth wrote the two hundred bytes of it itself,
unpacked the image, made the container's namespaces and cgroup, and ran it.

`

func (a *app) demoCommand() *cobra.Command {
	return &cobra.Command{
		Use: "demo", Short: "Start a daemon of its own and run a first container",
		Long: `Start a daemon with a root, a state and a socket of its own in a temporary directory, load an image that
is built into this program, run a container of it, show what there is then, and stop and remove it
all again. It needs root, and runc or a program like it on PATH.`,
		Example: "  berth demo", Args: session.ExactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.demo(cmd.Context()) },
	}
}

func (a *app) demo(ctx context.Context) (err error) {
	if os.Geteuid() != 0 {
		return errs.New(errs.PermissionDenied, "run this as root: containers need mounts and namespaces")
	}
	if _, err := exec.LookPath("runc"); err != nil {
		return errs.New(errs.FailedPrecondition, "runc is not on PATH: install it (Debian: apt-get install runc), or use `make run`, which brings one")
	}
	dir, err := os.MkdirTemp("", "berth-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	d, err := a.startDemo(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	if err := a.demoRun(ctx, d); err != nil {
		// An interrupted demo has left its container: it goes before the daemon does.
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), demoStop)
		defer cancel()
		if rerr := d.berth(clean, "rm", "--force", "hello").Run(); rerr != nil {
			err = fmt.Errorf("%w; its container could not be removed: %w", err, rerr)
		}
		return fmt.Errorf("%w\nThe daemon said:\n%s", err, d.log)
	}
	fmt.Fprint(a.Out, demoNext)
	return nil
}

// demoRun is what the demo shows: the commands that a user would type.
func (a *app) demoRun(ctx context.Context, d *demoDaemon) error {
	archive, err := hello.Archive(runtime.GOARCH, demoText)
	if err != nil {
		return err
	}
	for _, s := range []struct {
		why  string
		in   []byte
		args []string
	}{
		{"an image from inside this program: no registry is asked", archive, []string{"load", "--quiet"}},
		{"a container of it", nil, []string{"run", "--name", "hello", "--network", "none", hello.Name}},
		{"the images that are here now", nil, []string{"images"}},
		{"the containers, also those that have ended", nil, []string{"ps", "--all"}},
		{"away with it, its files and its log", nil, []string{"rm", "hello"}},
	} {
		a.step("berth "+strings.Join(s.args, " "), s.why)
		cmd := d.berth(ctx, s.args...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(s.in), a.Out, a.Err
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("berth %s: %w", s.args[0], err)
		}
	}
	return nil
}

// berth is a command for the demo's daemon; an interrupt ends it gently.
func (d *demoDaemon) berth(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, d.cmd.Path, append([]string{"--address", d.socket, "--namespace", "default"}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	cmd.WaitDelay = demoStop
	return cmd
}

func (a *app) step(command, why string) { fmt.Fprintf(a.Out, "\n$ %s   # %s\n", command, why) }

const demoNext = `
That was all of it; the daemon is stopped and nothing is left. To go on, with a daemon that stays:

    berth daemon &                                 # serves /run/berth/berth.sock
    berth run --rm -it busybox sh                  # an image of Docker Hub, and a terminal
    berth run -d --name web -v $PWD:/srv busybox httpd -f -h /srv
    berth ps;  berth logs -f web;  berth exec -it web sh
    berth --help                                   # every command, with examples
`

// demoDaemon is the daemon that a demo has for itself.
type demoDaemon struct {
	cmd    *exec.Cmd
	socket string
	log    *lockedBuffer
	done   chan struct{}
}

// lockedBuffer collects a program's output while it runs.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (a *app) startDemo(ctx context.Context, dir string) (*demoDaemon, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	d := &demoDaemon{socket: filepath.Join(dir, "berth.sock"), log: &lockedBuffer{}, done: make(chan struct{})}
	config := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(config, []byte("version = 4\n"), 0o600); err != nil {
		return nil, err
	}
	a.step("berth daemon --root "+dir+"/root --state "+dir+"/state --address "+d.socket, "a daemon of its own")
	d.cmd = exec.Command(self, "daemon", "--config", config, "--root", filepath.Join(dir, "root"), "--state", filepath.Join(dir, "state"), "--address", d.socket)
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	// An interrupt of ours is not the daemon's: we stop it in order.
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	// owner: stop waits for done.
	go func() {
		_ = d.cmd.Wait() // how it ended is in its log
		close(d.done)
	}()
	for end := time.Now().Add(demoStart); ; {
		if c, err := client.Dial(ctx, d.socket, "default"); err == nil {
			return d, c.Close()
		}
		select {
		case <-d.done:
			return nil, fmt.Errorf("the daemon ended at once. It said:\n%s", d.log)
		case <-ctx.Done():
			return nil, errors.Join(context.Cause(ctx), d.stop())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(end) {
			return nil, errors.Join(fmt.Errorf("the daemon does not answer within %s. It said:\n%s", demoStart, d.log), d.stop())
		}
	}
}

func (d *demoDaemon) stop() error {
	_ = d.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-d.done:
		return nil
	case <-time.After(demoStop):
		_ = d.cmd.Process.Kill()
		<-d.done
		return fmt.Errorf("the daemon did not stop within %s and was killed", demoStop)
	}
}
