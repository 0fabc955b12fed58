package tree

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Usage is what a tree takes on disk, its own directory included: bytes of
// allocated blocks, and inodes, each hard-linked file once. Other mounts below it
// do not count. What vanishes meanwhile does not count either.
func Usage(ctx context.Context, path string) (size, inodes int64, err error) {
	root, err := OpenRoot(path)
	if err != nil {
		return 0, 0, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(root, &st); err != nil {
		unix.Close(root)
		return 0, 0, fmt.Errorf("measure %s: %w", path, err)
	}
	w := usageWalk{dev: st.Dev, seen: map[uint64]struct{}{}}
	w.count(&st)
	if err := w.walk(ctx, level{fd: root, ino: st.Ino}); err != nil {
		return 0, 0, fmt.Errorf("measure %s: %w", path, err)
	}
	return w.size, w.inodes, nil
}

type usageWalk struct {
	dev          uint64
	size, inodes int64
	seen         map[uint64]struct{} // inodes with several names
	stack        []level
}

// level is a directory on the way down. Only the lowest maxOpen levels are open;
// the others (fd -1) are found again through "..", and known by their inode.
type level struct {
	fd   int
	ino  uint64
	todo []Entry
}

func (w *usageWalk) count(st *unix.Stat_t) {
	if st.Nlink > 1 && Format(st.Mode) != unix.S_IFDIR {
		if _, again := w.seen[st.Ino]; again {
			return
		}
		w.seen[st.Ino] = struct{}{}
	}
	w.size += st.Blocks * 512
	w.inodes++
}

func (w *usageWalk) walk(ctx context.Context, root level) (err error) {
	defer func() {
		for _, l := range w.stack {
			if l.fd >= 0 {
				unix.Close(l.fd)
			}
		}
	}()
	if err := w.push(root); err != nil {
		return err
	}
	for len(w.stack) > 0 {
		top := &w.stack[len(w.stack)-1]
		if len(top.todo) == 0 {
			if err := w.pop(); err != nil {
				return err
			}
			continue
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		e := top.todo[0]
		top.todo = top.todo[1:]
		if err := w.visit(top.fd, e.Name); err != nil {
			return err
		}
	}
	return nil
}

func (w *usageWalk) visit(dir int, name string) error {
	st, err := Stat(dir, name)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	if st.Dev != w.dev {
		return nil
	}
	w.count(&st)
	if Format(st.Mode) != unix.S_IFDIR {
		return nil
	}
	fd, err := OpenDir(dir, name)
	switch {
	case err == nil:
		return w.push(level{fd: fd, ino: st.Ino})
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.EXDEV):
		return nil
	}
	return fmt.Errorf("open directory %q: %w", name, err)
}

func (w *usageWalk) push(l level) error {
	w.stack = append(w.stack, l)
	if n := len(w.stack) - 1 - maxOpen; n >= 0 {
		unix.Close(w.stack[n].fd)
		w.stack[n].fd = -1
	}
	var err error
	w.stack[len(w.stack)-1].todo, err = Entries(l.fd)
	return err
}

// pop leaves the lowest directory, and opens the one above again if it was closed.
func (w *usageWalk) pop() error {
	n := len(w.stack) - 1
	low := w.stack[n]
	w.stack = w.stack[:n]
	defer unix.Close(low.fd)
	if n == 0 || w.stack[n-1].fd >= 0 {
		return nil
	}
	up := &w.stack[n-1]
	fd, err := unix.Openat(low.fd, "..", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("go up: %w", err)
	}
	up.fd = fd
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Ino != up.ino || st.Dev != w.dev {
		return fmt.Errorf("a directory was moved while it was measured: %w", unix.EAGAIN)
	}
	return nil
}
