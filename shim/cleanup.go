package shim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/host/cgroup"
	"github.com/berthd/berth/host/child"
	"github.com/berthd/berth/host/sock"
	"github.com/berthd/berth/shim/wire"
)

// cleanupLimit bounds `delete`; containerd gives it five seconds.
const cleanupLimit = 30 * time.Second

// lostStatus is the exit status of a process whose end nobody saw.
const lostStatus = 128 + int(syscall.SIGKILL)

// delete ends and removes what a dead shim left of a container, and prints how it
// ended. It may be run again and again, and on a bundle of which little is left.
func (f *flags) delete() error {
	bundle := f.bundle
	if bundle == "" {
		var err error
		if bundle, err = os.Getwd(); err != nil {
			return fmt.Errorf("find bundle: %w", err)
		}
	}
	reaper, stop := runReaper()
	defer stop()
	ctx, cancel := withTimeout(cleanupLimit)
	defer cancel()
	kept, err := readSettings(bundle)
	if err != nil {
		fmt.Fprintln(os.Stderr, err) // the rest can be done without it
	}
	answer := f.lastWords(bundle, kept)
	if err := f.cleanUp(ctx, bundle, kept, reaper); err != nil {
		return err
	}
	_, err = os.Stdout.Write(answer.Append(nil))
	return err
}

// lastWords is the recorded end, or one made up for a process that we kill now.
func (f *flags) lastWords(bundle string, kept settings) *wire.Deleted {
	r, err := readExit(bundle)
	if err == nil {
		return &wire.Deleted{Pid: uint32(r.Pid), ExitStatus: uint32(r.Status), ExitedAt: r.At}
	}
	if !errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintln(os.Stderr, err)
	}
	return &wire.Deleted{Pid: uint32(kept.Pid), ExitStatus: uint32(lostStatus), ExitedAt: time.Now()}
}

func (f *flags) cleanUp(ctx context.Context, bundle string, kept settings, reaper *child.Reaper) error {
	endOrphans(bundle)
	if again, err := readSettings(bundle); err == nil {
		kept = again // the shim may have come further than it seemed
	}
	killFirst(kept)
	if g, err := cgroup.System.FromSpec(kept.CgroupsPath, f.id, kept.SystemdCgroup); err == nil && kept.Pid != 0 {
		if err := g.Signal(ctx, syscall.SIGKILL); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	err := newRuntime(kept, bundle, f.namespace, reaper).Delete(ctx, f.id, bundle, true)
	if err != nil {
		fmt.Fprintln(os.Stderr, err) // the mounts must go in any case
	}
	if err := removeGroup(ctx, kept, f.id); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	if err := (kernelMounts{}).Unmount(filepath.Join(bundle, "rootfs")); err != nil {
		return err
	}
	_ = os.Remove(filepath.Join(bundle, attachSocket))
	removeDeadSocket(bundle)
	return nil
}

// groupLimit is how long the last processes of a group may take to leave it.
const groupLimit = 2 * time.Second

// removeGroup removes the container's cgroup if the runtime has left it: one that
// was killed in the middle of a create knows nothing of it any more.
func removeGroup(ctx context.Context, kept settings, id string) error {
	g, err := cgroup.System.FromSpec(kept.CgroupsPath, id, kept.SystemdCgroup)
	if err != nil {
		return errs.Ignore(err, errs.NotFound)
	}
	ctx, cancel := context.WithTimeout(ctx, groupLimit)
	defer cancel()
	return g.Remove(ctx)
}

// killFirst kills the container's first process and waits for its death. It is
// known by its pid and the time it was started: a pid alone may be another's by now.
func killFirst(kept settings) {
	if kept.Pid <= 0 || kept.StartTime == 0 {
		return
	}
	fd, err := unix.PidfdOpen(kept.Pid, 0)
	if err != nil {
		return
	}
	defer func() { _ = unix.Close(fd) }()
	if startTime(kept.Pid) != kept.StartTime {
		return
	}
	if unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) == nil {
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(deathLimit/time.Millisecond))
	}
}

// removeDeadSocket removes the socket of the shim that had this bundle, unless
// somebody listens there.
func removeDeadSocket(bundle string) {
	data, err := os.ReadFile(filepath.Join(bundle, addressFile))
	if err != nil {
		return
	}
	path := strings.TrimPrefix(strings.TrimSpace(string(data)), "unix://")
	if c, err := sock.Dial(path, connectLimit); err == nil {
		_ = c.Close()
	} else if errors.Is(err, unix.ECONNREFUSED) {
		_ = os.Remove(path)
	}
}
