package mount

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// idRange says that size ids from container on are the host's from host on.
type idRange struct{ container, host, size uint32 }

type idMaps struct{ uid, gid []idRange }

func (m idMaps) sys(r []idRange) []syscall.SysProcIDMap {
	var out []syscall.SysProcIDMap
	for _, i := range r {
		out = append(out, syscall.SysProcIDMap{ContainerID: int(i.container), HostID: int(i.host), Size: int(i.size)})
	}
	return out
}

// userNamespace makes a user namespace with the maps and returns a handle of it.
// A namespace needs a process to be born with: this program, started and ended
// before its first instruction (ptrace(2), PTRACE_TRACEME stops it at exec).
func (m idMaps) userNamespace() (*os.File, error) {
	type result struct {
		f   *os.File
		err error
	}
	c := make(chan result)
	// owner: this function, which waits; the thread is the tracer and must not
	// run anything else until the child is gone
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		f, err := m.traced()
		c <- result{f, err}
	}()
	r := <-c
	if r.err != nil {
		return nil, fmt.Errorf("make user namespace: %w", r.err)
	}
	return r.f, nil
}

func (m idMaps) traced() (f *os.File, err error) {
	p, err := os.StartProcess("/proc/self/exe", []string{"userns"}, &os.ProcAttr{Sys: &syscall.SysProcAttr{
		Cloneflags:                 unix.CLONE_NEWUSER,
		UidMappings:                m.sys(m.uid),
		GidMappings:                m.sys(m.gid),
		GidMappingsEnableSetgroups: true,
		Ptrace:                     true,
		Pdeathsig:                  unix.SIGKILL,
	}})
	if err != nil {
		return nil, err
	}
	defer func() {
		err = errors.Join(err, p.Kill())
		var ws unix.WaitStatus
		for { // the stop at exec, then the end
			_, e := unix.Wait4(p.Pid, &ws, unix.WALL, nil)
			if e == unix.EINTR || e == nil && !ws.Exited() && !ws.Signaled() {
				continue
			}
			break // ECHILD: somebody reaps for the whole process
		}
		_ = p.Release()
	}()
	return os.Open("/proc/" + strconv.Itoa(p.Pid) + "/ns/user")
}

// mapped clones the tree of mounts at path, seen through the id maps. It is
// attached nowhere.
func (m idMaps) mapped(path string, recursive bool) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	at := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
		at |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, flags)
	if err != nil {
		return -1, &os.PathError{Op: "clone mount of", Path: path, Err: err}
	}
	ns, err := m.userNamespace()
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	defer ns.Close()
	a := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())}
	if err := unix.MountSetattr(fd, "", at, &a); err != nil {
		unix.Close(fd)
		return -1, &os.PathError{Op: "map ids of", Path: path, Err: err}
	}
	return fd, nil
}

// bindMapped is a bind mount seen through id maps.
func bindMapped(source string, o options, at string) error {
	fd, err := o.ids.mapped(source, o.flags&unix.MS_REC != 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return moveTo(fd, at)
}

// moveTo attaches a mount that is a handle only.
func moveTo(fd int, at string) error {
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS); err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	return nil
}
