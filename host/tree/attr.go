package tree

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// CopyAttr gives d/dname owner, extended attributes, mode and times of s/sname,
// in the order in which the kernel does not take back what was set. An empty name
// means the open file itself. Attributes that overlay keeps for itself are not
// copied.
func CopyAttr(d int, dname string, s int, sname string) error {
	st, err := statAny(s, sname)
	if err != nil {
		return fmt.Errorf("read attributes: %w", err)
	}
	if err := Chown(d, dname, st.Uid, st.Gid); err != nil {
		return err
	}
	attrs, err := Xattrs(s, sname)
	if err != nil {
		return err
	}
	for _, a := range attrs {
		if OverlayOwn(a.Name) {
			continue
		}
		if err := SetXattr(d, dname, a.Name, a.Value); err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("set attribute %s: %w", a.Name, err)
		}
	}
	if Format(st.Mode) != unix.S_IFLNK {
		if err := Chmod(d, dname, st.Mode&0o7777); err != nil {
			return err
		}
	}
	return SetTimes(d, dname, st.Atim, st.Mtim)
}

func statAny(dir int, name string) (st unix.Stat_t, err error) {
	err = unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH)
	return st, err
}

// Chown sets the owner of dir/name, which may be a link, or of the handle dir.
func Chown(dir int, name string, uid, gid uint32) error {
	if err := unix.Fchownat(dir, name, int(uid), int(gid), unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("set owner %d:%d: %w", uid, gid, err)
	}
	return nil
}

// Chmod sets the mode bits of dir/name, which must not be a link, or of the
// handle dir.
func Chmod(dir int, name string, mode uint32) error {
	var err error
	if name == "" {
		err = unix.Fchmod(dir, mode)
	} else {
		// Older kernels have no fchmodat with flags: go through a handle, and
		// make sure what it is a handle of.
		err = withHandle(dir, name, func(fd int) error {
			st, err := statAny(fd, "")
			if err == nil && Format(st.Mode) == unix.S_IFLNK {
				err = unix.ELOOP
			}
			if err != nil {
				return err
			}
			return unix.Chmod(procPath(fd, ""), mode)
		})
	}
	if err != nil {
		return fmt.Errorf("set mode %#o: %w", mode, err)
	}
	return nil
}

func withHandle(dir int, name string, do func(fd int) error) error {
	fd, err := Open(dir, name, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return do(fd)
}

// SetTimes sets access and change time of dir/name, which may be a link, or of
// the handle dir.
func SetTimes(dir int, name string, atime, mtime unix.Timespec) error {
	flags := unix.AT_SYMLINK_NOFOLLOW
	if name == "" {
		flags = unix.AT_EMPTY_PATH
	}
	if err := unix.UtimesNanoAt(dir, name, []unix.Timespec{atime, mtime}, flags); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}

// Xattr is one extended attribute.
type Xattr struct {
	Name  string
	Value []byte
}

// OverlayOwn reports whether an attribute is one of overlay's own marks
// (Documentation/filesystems/overlayfs.rst).
func OverlayOwn(name string) bool {
	return strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.")
}

// Xattrs reads all extended attributes of dir/name, which may be a link, or of
// the handle dir, sorted as the kernel gives them. A file system without them
// gives none.
func Xattrs(dir int, name string) ([]Xattr, error) {
	list, err := readAll(func(b []byte) (int, error) { return listXattr(dir, name, b) })
	if err != nil {
		if errors.Is(err, unix.ENOTSUP) {
			return nil, nil
		}
		return nil, fmt.Errorf("list attributes: %w", err)
	}
	var out []Xattr
	for n := range bytes.SplitSeq(list, []byte{0}) {
		if len(n) == 0 {
			continue
		}
		v, err := GetXattr(dir, name, string(n))
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read attribute %s: %w", n, err)
		}
		out = append(out, Xattr{string(n), v})
	}
	return out, nil
}

func listXattr(dir int, name string, b []byte) (int, error) {
	if name == "" {
		return unix.Flistxattr(dir, b)
	}
	return unix.Llistxattr(procPath(dir, name), b)
}

// GetXattr reads one extended attribute.
func GetXattr(dir int, name, attr string) ([]byte, error) {
	return readAll(func(b []byte) (int, error) {
		if name == "" {
			return unix.Fgetxattr(dir, attr, b)
		}
		return unix.Lgetxattr(procPath(dir, name), attr, b)
	})
}

// SetXattr sets one extended attribute.
func SetXattr(dir int, name, attr string, value []byte) error {
	if name == "" {
		return unix.Fsetxattr(dir, attr, value, 0)
	}
	return unix.Lsetxattr(procPath(dir, name), attr, value, 0)
}

// readAll calls read with a buffer that is large enough: 64 KiB is the most that
// the kernel keeps (XATTR_SIZE_MAX, XATTR_LIST_MAX).
func readAll(read func([]byte) (int, error)) ([]byte, error) {
	buf := make([]byte, 256)
	n, err := read(buf)
	if errors.Is(err, unix.ERANGE) {
		buf = make([]byte, 64<<10)
		n, err = read(buf)
	}
	if err != nil {
		return nil, err
	}
	return buf[:n], nil
}

// Readlink reads the target of the link dir/name.
func Readlink(dir int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, buf)
	if err != nil {
		return "", fmt.Errorf("read link: %w", err)
	}
	return string(buf[:n]), nil
}
