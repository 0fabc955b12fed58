package tree

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// maxOpen is how many levels a removal or a walk keeps open at once.
const maxOpen = 64

// RemovePath deletes the tree at path, whose parent directory the caller vouches
// for. A path that is not there is not an error.
func RemovePath(path string) error {
	dir, err := OpenRoot(filepath.Dir(path))
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	defer unix.Close(dir)
	if err := Remove(dir, filepath.Base(path)); err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

// Remove deletes name, file or tree, below the open directory dir. It stops with
// an error at a mount point; what it deleted before is gone. A name that is not
// there is not an error.
func Remove(dir int, name string) error {
	err := unix.Unlinkat(dir, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) {
		return fmt.Errorf("unlink %q: %w", name, err)
	}
	top, err := OpenDir(dir, name)
	if err != nil {
		return fmt.Errorf("open %q: %w", name, err)
	}
	defer unix.Close(top)
	r := remover{top: top}
	for {
		moved := r.moved
		if err := r.empty(top, 1); err != nil {
			return fmt.Errorf("%q: %w", name, err)
		}
		if r.moved == moved {
			break
		}
	}
	if err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); err != nil && err != unix.ENOENT {
		return fmt.Errorf("remove directory %q: %w", name, err)
	}
	return nil
}

type remover struct {
	top   int // the directory being removed
	moved int // how many deep directories were moved up into it
}

// empty deletes everything in dir, which is depth levels below the start.
func (r *remover) empty(dir, depth int) error {
	list, err := Entries(dir)
	if err != nil {
		return err
	}
	for _, e := range list {
		if e.Type != unix.DT_DIR {
			err := unix.Unlinkat(dir, e.Name, 0)
			if err == nil || err == unix.ENOENT {
				continue
			}
			if err != unix.EISDIR {
				return fmt.Errorf("unlink %q: %w", e.Name, err)
			}
		}
		if err := r.directory(dir, e.Name, depth); err != nil {
			return fmt.Errorf("%q: %w", e.Name, err)
		}
	}
	return nil
}

func (r *remover) directory(dir int, name string, depth int) error {
	if depth >= maxOpen {
		return r.lift(dir, name)
	}
	fd, err := OpenDir(dir, name)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open directory: %w", err)
	}
	err = r.empty(fd, depth+1)
	unix.Close(fd)
	if err != nil {
		return err
	}
	if err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); err != nil && err != unix.ENOENT {
		return fmt.Errorf("remove directory: %w", err)
	}
	return nil
}

// lift moves a directory that is too deep to hold all its ancestors open to the
// top, where the next round finds it: any depth with a bounded number of handles.
func (r *remover) lift(dir int, name string) error {
	for {
		r.moved++
		err := unix.Renameat2(dir, name, r.top, ".deep."+strconv.Itoa(r.moved), unix.RENAME_NOREPLACE)
		if err == unix.EEXIST {
			continue
		}
		if err != nil && err != unix.ENOENT {
			return fmt.Errorf("move up: %w", err)
		}
		return nil
	}
}
