package shim

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
)

// Kill ends the shim's process by SIGKILL: one that does not answer any more. It is
// found by the socket that it serves.
func (c *Conn) Kill(ctx context.Context) error {
	path, ok := strings.CutPrefix(c.boot.Address, "unix://")
	if !ok {
		return errs.New(errs.Unimplemented, "the shim at %s is no process of this machine's", c.boot.Address)
	}
	inodes, err := listening(path)
	if err != nil {
		return fmt.Errorf("find the shim that serves %s: %w", path, err)
	}
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return err
	}
	for _, link := range links {
		if to, err := os.Readlink(link); err != nil || !inodes[to] {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(link, "/")[2])
		if err != nil || pid == os.Getpid() {
			continue
		}
		return killOwner(pid, link, inodes)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return errs.New(errs.NotFound, "no process serves %s", path)
}

// listening returns the sockets that listen at a path, as links of /proc/PID/fd name
// them. /proc/net/unix (proc_pid_net(5)):
//
//	Num RefCount Protocol Flags Type St Inode Path
func listening(path string) (map[string]bool, error) {
	data, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return nil, err
	}
	const accepts = 0x10000 // __SO_ACCEPTCON of linux/net.h
	out := map[string]bool{}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) < 8 || f[7] != path {
			continue
		}
		if flags, err := strconv.ParseUint(f[3], 16, 32); err == nil && flags&accepts != 0 {
			out["socket:["+f[6]+"]"] = true
		}
	}
	return out, nil
}

// killOwner kills a process by a handle, after a second look whether it is still the
// one that has the socket.
func killOwner(pid int, link string, inodes map[string]bool) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return errs.New(errs.NotFound, "process %d: %w", pid, err)
	}
	defer unix.Close(fd) // only signalled through
	if to, err := os.Readlink(link); err != nil || !inodes[to] {
		return errs.New(errs.NotFound, "process %d has ended", pid)
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	return nil
}
