// Package rootfs looks into a root file system that is described by mounts, without
// mounting it where that can be avoided: for the users that an image knows. It
// mounts only in Mount, whose caller unmounts.
package rootfs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/api/types"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
)

// maxFile is the largest file that is read, in bytes.
const maxFile = 4 << 20

// layers are the directories of which the mounts are made, the uppermost first.
func layers(mounts []*types.Mount) ([]string, error) {
	if len(mounts) != 1 {
		return nil, errs.New(errs.Unimplemented, "a root file system of %d mounts", len(mounts))
	}
	m := mounts[0]
	switch m.GetType() {
	case "bind":
		return []string{m.GetSource()}, nil
	case "overlay":
	default:
		return nil, errs.New(errs.Unimplemented, "a root file system of type %s", m.GetType())
	}
	var upper, lower []string
	for _, o := range m.GetOptions() {
		if v, ok := strings.CutPrefix(o, "upperdir="); ok {
			upper = []string{v}
		} else if v, ok := strings.CutPrefix(o, "lowerdir="); ok {
			lower = strings.Split(v, ":")
		}
	}
	return append(upper, lower...), nil
}

// ReadFile reads a small file of a root file system, following links inside it. A
// file that is in no layer is fs.ErrNotExist.
func ReadFile(mounts []*types.Mount, name string) ([]byte, error) {
	all, err := layers(mounts)
	if err != nil {
		return nil, err
	}
	for _, dir := range all {
		data, found, err := readIn(dir, name)
		if err != nil {
			return nil, fmt.Errorf("read %s of the image: %w", name, err)
		}
		if found {
			return data, nil
		}
	}
	return nil, os.ErrNotExist
}

// readIn reads a file of one layer. A whiteout counts as found, and is an error.
func readIn(dir, name string) (data []byte, found bool, err error) {
	base, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, false, err
	}
	defer unix.Close(base)
	how := &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_NONBLOCK | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(base, strings.TrimPrefix(filepath.Clean("/"+name), "/"), how)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return nil, false, nil
	case errors.Is(err, unix.ENXIO): // the device 0:0
		return nil, true, os.ErrNotExist
	case err != nil:
		return nil, false, err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, false, err
	}
	if !st.Mode().IsRegular() {
		return nil, true, os.ErrNotExist
	}
	data, err = io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = errs.New(errs.ResourceExhausted, "it has more than %d bytes", maxFile)
	}
	return data, true, err
}

// Mount mounts a root file system on a directory; Unmount takes it away.
func Mount(mounts []*types.Mount, at string) error {
	for _, m := range mounts {
		var flags uintptr
		var data []string
		for _, o := range m.GetOptions() {
			switch o {
			case "ro":
				flags |= unix.MS_RDONLY
			case "rw":
			case "bind":
				flags |= unix.MS_BIND
			case "rbind":
				flags |= unix.MS_BIND | unix.MS_REC
			default:
				data = append(data, o)
			}
		}
		if m.GetType() == "bind" {
			flags |= unix.MS_BIND
		}
		if err := unix.Mount(m.GetSource(), at, m.GetType(), flags, strings.Join(data, ",")); err != nil {
			return errors.Join(fmt.Errorf("mount the root file system: %w", err), Unmount(at))
		}
		if flags&unix.MS_BIND != 0 && flags&unix.MS_RDONLY != 0 {
			if err := unix.Mount("", at, "", flags|unix.MS_REMOUNT, ""); err != nil {
				return errors.Join(fmt.Errorf("make the root file system read-only: %w", err), Unmount(at))
			}
		}
	}
	return nil
}

// Unmount takes every mount off a directory.
func Unmount(at string) error {
	for {
		err := unix.Unmount(at, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) {
			return nil
		}
		if errors.Is(err, unix.EBUSY) {
			err = unix.Unmount(at, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", at, err)
		}
	}
}

// With calls fn with a root file system that is mounted for the purpose. The mount is
// held by a descriptor only, so that it goes with this program, however that ends.
func With(mounts []*types.Mount, fn func(root string) error) error {
	dir, err := os.MkdirTemp("", "berth-rootfs-")
	if err != nil {
		return err
	}
	if err := Mount(mounts, dir); err != nil {
		return errors.Join(err, os.Remove(dir))
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	err = errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW), os.Remove(dir))
	if fd >= 0 {
		defer unix.Close(fd)
	}
	if err != nil {
		return fmt.Errorf("open the root file system: %w", err)
	}
	return fn(fmt.Sprintf("/proc/self/fd/%d", fd))
}

// Exists reports whether a path is there; links at its end are not followed.
func Exists(mounts []*types.Mount, name string) (bool, error) {
	all, err := layers(mounts)
	if err != nil {
		return false, err
	}
	for _, dir := range all {
		base, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return false, err
		}
		fd, err := unix.Openat2(base, strings.TrimPrefix(filepath.Clean("/"+name), "/"), &unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
		_ = unix.Close(base)
		if err != nil {
			continue
		}
		var st unix.Stat_t
		err = unix.Fstat(fd, &st)
		_ = unix.Close(fd)
		if err != nil {
			return false, err
		}
		return st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0, nil // the device 0:0 is a whiteout
	}
	return false, nil
}
