package shim

import (
	"errors"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/wire"
)

// orphanGrace is how long an exec whose client has left may take to end by itself
// after it was hung up on.
const orphanGrace = 3 * time.Second

// orphaned is told that the daemon that had handed over the streams of an exec has
// died or given it up. A dead exec is forgotten. A living one is hung up on, as by a
// terminal; what has asked to outlive that (nohup) does, but not the exec itself.
func (p *process) orphaned() {
	c := p.c
	c.mu.Lock()
	p.abandoned = true
	stopped := p.status == wire.Stopped
	if stopped {
		c.finished.Add(1)
	}
	c.mu.Unlock()
	if stopped {
		// owner: Delete of the container waits for it through c.finished
		go func() { defer c.finished.Done(); c.forget(p); c.shim.quiet.work() }()
		return
	}
	p.signalGroup(syscall.SIGHUP)
	time.AfterFunc(orphanGrace, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if p.pidfd != nil {
			_ = syscall.Kill(p.pid, syscall.SIGKILL)
		}
	})
}

// signalGroup signals the process group that an exec leads, which OCI runtimes put
// every exec into. It reports false, having done nothing, if the exec is dead or
// leads no group.
func (p *process) signalGroup(sig syscall.Signal) bool {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	if p.pidfd == nil || p.dead {
		return false
	}
	if group, err := syscall.Getpgid(p.pid); err != nil || group != p.pid {
		return false
	}
	rc, err := p.pidfd.SyscallConn()
	if err != nil {
		return false
	}
	var sysErr error
	if err := rc.Control(func(fd uintptr) {
		sysErr = unix.PidfdSendSignal(int(fd), sig, nil, unix.PIDFD_SIGNAL_PROCESS_GROUP)
	}); err != nil {
		return false
	}
	if errors.Is(sysErr, unix.EINVAL) { // before Linux 6.9
		sysErr = syscall.Kill(-p.pid, sig)
	}
	return sysErr == nil
}
