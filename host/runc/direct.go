package runc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/host/oci"
	"github.com/berthd/berth/host/sock"
)

// What runc would do through the kernel is done here without starting it.

// Kill signals the first process, or with all every process of the container. The
// error is of kind NotFound if the first process is dead. A process that is killed
// in a frozen container is let out of the freezer, else it would never die.
func (r *Runtime) Kill(ctx context.Context, t oci.Target, sig syscall.Signal, all bool) error {
	if t.PidFD == nil {
		return finished()
	}
	everybody := t.Group != nil && (all || sig == syscall.SIGKILL && t.SharesPIDs)
	if everybody {
		if err := sendTo(t.PidFD, 0); err != nil {
			return err
		}
		if err := t.Group.Signal(ctx, sig); err != nil {
			return fmt.Errorf("signal all processes of %s: %w", t.ID, err)
		}
		if sig != syscall.SIGKILL {
			return nil
		}
	}
	err := sendTo(t.PidFD, sig)
	if everybody && errors.Is(err, errs.NotFound) {
		err = nil
	}
	if err == nil && sig == syscall.SIGKILL && t.Group != nil && t.Group.Frozen() {
		err = t.Group.Thaw(ctx)
	}
	return err
}

func finished() error { return errs.New(errs.NotFound, "process already finished") }

// sendTo signals the process behind a pidfd (pidfd_send_signal(2)).
func sendTo(pidfd *os.File, sig syscall.Signal) error {
	rc, err := pidfd.SyscallConn()
	if err != nil {
		return finished() // closed: it was reaped
	}
	var sysErr error
	if err := rc.Control(func(fd uintptr) { sysErr = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return finished()
	}
	switch {
	case sysErr == nil:
		return nil
	case errors.Is(sysErr, unix.ESRCH):
		return finished()
	case errors.Is(sysErr, unix.EINVAL):
		return errs.New(errs.InvalidArgument, "signal %d is not valid", int(sig))
	}
	return fmt.Errorf("send signal %d: %w", int(sig), sysErr)
}

// Pause freezes every process of the container.
func (r *Runtime) Pause(ctx context.Context, t oci.Target) error {
	if t.Group == nil {
		return errs.New(errs.FailedPrecondition, "container %s has no cgroup of its own: it cannot be paused", t.ID)
	}
	return t.Group.Freeze(ctx)
}

// Resume thaws every process of the container.
func (r *Runtime) Resume(ctx context.Context, t oci.Target) error {
	if t.Group == nil {
		return nil
	}
	return t.Group.Thaw(ctx)
}

// Ps lists the container's processes.
func (r *Runtime) Ps(_ context.Context, t oci.Target) ([]int, error) {
	if t.Group == nil {
		return []int{t.Pid}, nil
	}
	return t.Group.Pids()
}

// console receives the master of a terminal that the runtime makes.
type console struct {
	l    *sock.Listener
	path string
}

// consoleLimit is how long a runtime that has ended well may owe us the terminal.
const consoleLimit = 10 * time.Second

func listenConsole(bundle, name string) (*console, error) {
	path := filepath.Join(bundle, name)
	_ = os.Remove(path)
	l, err := sock.Listen(path)
	if err != nil {
		return nil, fmt.Errorf("make console socket: %w", err)
	}
	return &console{l, path}, nil
}

func (c *console) close() {
	c.l.Close()
	_ = os.Remove(c.path)
}

func (c *console) receive() (*os.File, error) {
	c.l.SetDeadline(time.Now().Add(consoleLimit))
	conn, err := c.l.Accept()
	if err != nil {
		return nil, fmt.Errorf("receive console: %w", err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(consoleLimit))
	f, err := sock.ReceiveFile(conn)
	if err != nil {
		return nil, fmt.Errorf("receive console: %w", err)
	}
	return f, nil
}
