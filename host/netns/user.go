package netns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
)

// makeOwned makes the namespaces around a program that lives until they are pinned.
func makeOwned(ctx context.Context, dir string, list []kind, o Options) (err error) {
	cmd := exec.CommandContext(ctx, o.User.Hold[0], o.User.Hold[1:]...)
	cmd.Env = []string{}
	// The kernel ends it when the thread that started it ends: that one is kept here.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: uintptr(flags(list)), UidMappings: sysMap(o.User.UIDs), GidMappings: sysMap(o.User.GIDs), GidMappingsEnableSetgroups: true,
		Pdeathsig: syscall.SIGKILL,
	}
	// It may be one that ends with its input: that is open until it is killed.
	in, err := cmd.StdinPipe()
	if err != nil {
		return fmt.Errorf("make namespaces: %w", err)
	}
	defer in.Close() // nothing is written
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("make namespaces: start %s in them: %w", o.User.Hold[0], hint(err))
	}
	defer func() { err = errors.Join(err, endHold(cmd)) }()
	from := fmt.Sprintf("/proc/%d/ns", cmd.Process.Pid)
	if err := pinAll(dir, from, list); err != nil {
		return err
	}
	return onThread(func() error {
		for _, k := range list {
			if k.flag == unix.CLONE_NEWUSER {
				continue // entering the others needs only power over it, which we have
			}
			ns, err := os.Open(filepath.Join(dir, k.name))
			if err != nil {
				return err
			}
			err = unix.Setns(int(ns.Fd()), k.flag)
			_ = ns.Close() // only read
			if err != nil {
				return fmt.Errorf("enter the new %s namespace: %w", k.name, err)
			}
		}
		own, rest := ipcSysctls(o.Sysctls)
		o.Sysctls = rest
		if err := o.fill(); err != nil || len(own) == 0 {
			return err
		}
		// The variables of an IPC namespace can be written by the root of the user
		// namespace that owns it and by nobody else, whatever his power. The thread
		// becomes him, and ends.
		if uid, ok := rootOf(o.User.UIDs); !ok {
			return errs.New(errs.InvalidArgument, "sysctls of IPC need a root in the user namespace")
		} else if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); e != 0 {
			return fmt.Errorf("become the root of the user namespace: %w", e)
		}
		return setAll(own)
	})
}

// ipcSysctls parts those that belong to the IPC namespace from the rest.
func ipcSysctls(all map[string]string) (own, rest map[string]string) {
	own, rest = map[string]string{}, map[string]string{}
	for k, v := range all {
		if isIPC(parts(k)) {
			own[k] = v
		} else {
			rest[k] = v
		}
	}
	return own, rest
}

// rootOf is the host's id of the root of a user namespace.
func rootOf(list []Mapping) (uintptr, bool) {
	for _, m := range list {
		if m.Inside == 0 {
			return uintptr(m.Outside), true
		}
	}
	return 0, false
}

func endHold(cmd *exec.Cmd) error {
	_ = cmd.Process.Kill() // it may have ended already
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
		return fmt.Errorf("wait for %s: %w", cmd.Path, err)
	}
	return nil
}

func sysMap(list []Mapping) []syscall.SysProcIDMap {
	out := make([]syscall.SysProcIDMap, 0, len(list))
	for _, m := range list {
		out = append(out, syscall.SysProcIDMap{ContainerID: int(m.Inside), HostID: int(m.Outside), Size: int(m.Size)})
	}
	return out
}
