// Package dirs keeps one directory per snapshot id, for the drivers that work
// that way: it makes the place, names, lists and removes. It owns
//
//	<root>/snapshots/<id>
//	<root>/snapshots/rm-<id>   being deleted
package dirs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/host/mount"
	"github.com/berthd/berth/host/tree"
)

const doomedPrefix = "rm-"

// Dirs is the directories below one root.
type Dirs struct{ root string }

// Open opens or makes the place; only its owner may enter.
func Open(root string) (Dirs, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return Dirs{}, err
	}
	d := Dirs{root}
	for _, p := range []string{root, d.all()} {
		if err := private(p); err != nil {
			return Dirs{}, err
		}
	}
	return d, spread(d.all())
}

// Root is the directory that was given to Open.
func (d Dirs) Root() string { return d.root }

func (d Dirs) all() string { return filepath.Join(d.root, "snapshots") }

// Path is the directory of id, whether it is there or not.
func (d Dirs) Path(id uint64) string { return filepath.Join(d.all(), strconv.FormatUint(id, 10)) }

func (d Dirs) doomed(id uint64) string {
	return filepath.Join(d.all(), doomedPrefix+strconv.FormatUint(id, 10))
}

// Remove deletes what id has: at once for all to see, then file by file. A mount
// in it is an error of kind FailedPrecondition and nothing is touched.
func (d Dirs) Remove(id uint64) error {
	if err := tree.RemovePath(d.doomed(id)); err != nil {
		return err
	}
	if _, err := os.Lstat(d.Path(id)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	busy, err := mount.Points(d.Path(id))
	if err != nil {
		return err
	}
	if len(busy) > 0 {
		return errs.New(errs.FailedPrecondition, "busy: mounted at %s", busy[0])
	}
	if err := os.Rename(d.Path(id), d.doomed(id)); err != nil {
		return err
	}
	return tree.RemovePath(d.doomed(id))
}

// List gives the ids that have anything, also half made or half removed.
func (d Dirs) List() ([]uint64, error) {
	list, err := os.ReadDir(d.all())
	if err != nil {
		return nil, err
	}
	var out []uint64
	for _, e := range list {
		n, err := strconv.ParseUint(strings.TrimPrefix(e.Name(), doomedPrefix), 10, 64)
		if err == nil {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// private makes a directory, and those above it, or tightens the one that is there.
func private(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	st, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !st.IsDir() {
		return &os.PathError{Op: "use as directory", Path: path, Err: unix.ENOTDIR}
	}
	if st.Mode().Perm() != 0o700 {
		return os.Chmod(path, 0o700)
	}
	return nil
}

// topDir is FS_TOPDIR_FL of linux/fs.h: chattr +T.
const topDir = 0x00020000

// spread asks ext4 to place each new directory in dir in a block group of its own.
// Without, new files go next to where files were deleted last, and ext4 looks at
// each inode that was freed in the last minutes before it takes one: a pull after
// a removal takes five times as long. Other file systems do not care.
func spread(dir string) error {
	fd, err := tree.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	if err != nil || flags&topDir != 0 {
		return nil // set, or a file system without such flags
	}
	switch err := unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags|topDir); err {
	case nil, unix.EOPNOTSUPP, unix.ENOTTY, unix.EINVAL, unix.EPERM:
		return nil // only a wish
	default:
		return fmt.Errorf("mark %s as top directory: %w", dir, err)
	}
}
