package cgroup

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

	"github.com/berthd/berth/base/errs"
)

// refreeze is how long we let version 1 hang in FREEZING before we thaw and try
// again: a task that forks during the freeze can hold it there
// (Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst).
const refreeze = 50 * time.Millisecond

// Freeze stops every process of the group and returns when all have stopped.
func (g *Group) Freeze(ctx context.Context) error {
	if g.unified {
		return g.setV2(ctx, "1")
	}
	file, err := g.freezerFile()
	if err != nil {
		return err
	}
	for {
		if err := os.WriteFile(file, []byte("FROZEN"), 0); err != nil {
			return fmt.Errorf("freeze: %w", err)
		}
		again, cancel := context.WithTimeout(ctx, refreeze)
		err := until(again, func() (bool, error) { return holds(file, "FROZEN") })
		cancel()
		if err == nil || !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
		if err := os.WriteFile(file, []byte("THAWED"), 0); err != nil {
			return fmt.Errorf("thaw for another try to freeze: %w", err)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("freeze %s: %w", file, context.Cause(ctx))
		}
	}
}

// Thaw lets the processes run again. A group that is gone is thawed.
func (g *Group) Thaw(ctx context.Context) error {
	if g.unified {
		return ignoreGone(g.setV2(ctx, "0"))
	}
	file, err := g.freezerFile()
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, []byte("THAWED"), 0); err != nil {
		return ignoreGone(err)
	}
	return until(ctx, func() (bool, error) { return holds(file, "THAWED") })
}

// Frozen says whether the group was told to freeze.
func (g *Group) Frozen() bool {
	if g.unified {
		data, _ := os.ReadFile(filepath.Join(g.dirs[""], "cgroup.freeze"))
		return strings.TrimSpace(string(data)) == "1"
	}
	file, err := g.freezerFile()
	if err != nil {
		return false
	}
	data, _ := os.ReadFile(file)
	s := strings.TrimSpace(string(data))
	return s == "FROZEN" || s == "FREEZING"
}

func (g *Group) freezerFile() (string, error) {
	d := g.dirs["freezer"]
	if d == "" {
		return "", errs.New(errs.FailedPrecondition, "the container has no freezer cgroup")
	}
	return filepath.Join(d, "freezer.state"), nil
}

func (g *Group) setV2(ctx context.Context, value string) error {
	dir := g.dirs[""]
	if err := os.WriteFile(filepath.Join(dir, "cgroup.freeze"), []byte(value), 0); err != nil {
		return fmt.Errorf("write cgroup.freeze: %w", err)
	}
	return until(ctx, func() (bool, error) {
		return holds(filepath.Join(dir, "cgroup.events"), "frozen "+value)
	})
}

func holds(file, text string) (bool, error) {
	data, err := os.ReadFile(file)
	return strings.Contains(string(data), text), err
}

// until asks again and again, ever less often, until ok or the context ends.
func until(ctx context.Context, ok func() (bool, error)) error {
	for pause := 100 * time.Microsecond; ; pause = min(2*pause, 10*time.Millisecond) {
		done, err := ok()
		if done || err != nil {
			return err
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		case <-t.C:
		}
	}
}

// ignoreGone turns the errors of a group that no longer exists into nil.
func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.EOPNOTSUPP) {
		return nil
	}
	return err
}

// Signal sends sig to every process of the group. For SIGKILL it also thaws the
// group, and returns when nothing is left that could fork, or when ctx ends; what
// it killed may still be dying then.
func (g *Group) Signal(ctx context.Context, sig syscall.Signal) error {
	if g.unified && sig == syscall.SIGKILL {
		err := os.WriteFile(filepath.Join(g.dirs[""], "cgroup.kill"), []byte("1"), 0)
		if err == nil || ignoreGone(err) == nil && !exists(g.dirs[""]) {
			return nil
		}
	}
	frozen := g.Frozen()
	if !frozen {
		// So that nothing forks away, and no pid is reused, while we walk. Where it
		// cannot be had in time we go on without.
		quick, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		_ = g.Freeze(quick)
		cancel()
	}
	pids, err := g.Pids()
	for _, pid := range pids {
		if e := syscall.Kill(pid, sig); e != nil && e != syscall.ESRCH && err == nil {
			err = fmt.Errorf("signal process %d: %w", pid, e)
		}
	}
	if sig == syscall.SIGKILL || !frozen {
		if e := g.Thaw(ctx); e != nil && err == nil && !errors.Is(e, errs.FailedPrecondition) {
			err = e
		}
	}
	return err
}
