package cgroup

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// Remove takes away the group's directories, and those below them, if no process
// is in them: what a runtime leaves that was killed between making a group and
// writing down that it had. Processes that are dying are waited for until ctx
// ends. A group that is gone is no error.
func (g *Group) Remove(ctx context.Context) error {
	dirs := slices.Collect(maps.Values(g.dirs))
	if g.hybrid != "" {
		dirs = append(dirs, g.hybrid)
	}
	var all []error
	for _, dir := range dirs {
		all = append(all, until(ctx, func() (bool, error) {
			err := removeTree(dir)
			if errors.Is(err, unix.EBUSY) && ctx.Err() == nil {
				return false, nil
			}
			return true, err
		}))
	}
	if err := errors.Join(all...); err != nil {
		return fmt.Errorf("remove cgroup: %w", err)
	}
	return nil
}

func removeTree(dir string) error {
	var dirs []string
	if err := walk(dir, func(d string) error { dirs = append(dirs, d); return nil }); err != nil {
		return err
	}
	for _, d := range slices.Backward(dirs) {
		// rmdir, not remove: the files in it are the kernel's.
		if err := unix.Rmdir(d); err != nil && !errors.Is(err, unix.ENOENT) {
			return &os.PathError{Op: "rmdir", Path: d, Err: err}
		}
	}
	return nil
}
