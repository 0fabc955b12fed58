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
		return o.fill()
	})
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
