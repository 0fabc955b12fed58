// Package tree removes, measures and copies directory trees by handle: every
// step is one name below an open directory, no link is followed and no mount is
// crossed, so it is safe on trees that other programs wrote or still change. It
// owns nothing.
package tree

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// stay are the rules of every lookup: one step, no link, no other mount.
const stay = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV

// Open opens name, one step or a path without links, below the directory dir.
// A mount point on the way is EXDEV, a link ELOOP. It retries what the kernel
// asks to retry (openat2(2): EAGAIN when a rename interferes).
func Open(dir int, name string, flags int, mode uint32) (int, error) {
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Mode: uint64(mode), Resolve: stay}
	for range 64 {
		fd, err := unix.Openat2(dir, name, &how)
		if err != unix.EAGAIN && err != unix.EINTR {
			return fd, err
		}
		runtime.Gosched()
	}
	return -1, unix.EAGAIN
}

// OpenDir opens a directory for reading.
func OpenDir(dir int, name string) (int, error) {
	return Open(dir, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
}

// OpenRoot opens a directory by its full path, which the caller vouches for.
func OpenRoot(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open directory", Path: path, Err: err}
	}
	return fd, nil
}

// Entry is one name in a directory.
type Entry struct {
	Name string
	Type uint8 // DT_DIR, DT_REG, … or DT_UNKNOWN
}

// Entries reads a whole directory from its start, in the directory's order.
func Entries(dir int) ([]Entry, error) {
	if _, err := unix.Seek(dir, 0, 0); err != nil {
		return nil, fmt.Errorf("rewind directory: %w", err)
	}
	var out []Entry
	buf := make([]byte, 32<<10)
	for {
		n, err := unix.ReadDirent(dir, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read directory: %w", err)
		}
		if n == 0 {
			return out, nil
		}
		out = appendEntries(out, buf[:n])
	}
}

// appendEntries reads linux_dirent64 records (getdents64(2)):
//
//	ino 8 | off 8 | reclen 2 | type 1 | name, NUL, padding
func appendEntries(out []Entry, b []byte) []Entry {
	for len(b) > 19 {
		size := int(binary.NativeEndian.Uint16(b[16:]))
		name := b[19:size]
		if i := bytes.IndexByte(name, 0); i >= 0 {
			name = name[:i]
		}
		if s := string(name); s != "." && s != ".." {
			out = append(out, Entry{s, b[18]})
		}
		b = b[size:]
	}
	return out
}

// SortedEntries is Entries in byte order of the names.
func SortedEntries(dir int) ([]Entry, error) {
	list, err := Entries(dir)
	slices.SortFunc(list, func(a, b Entry) int { return bytes.Compare([]byte(a.Name), []byte(b.Name)) })
	return list, err
}

// Stat is fstatat that does not follow a link.
func Stat(dir int, name string) (st unix.Stat_t, err error) {
	err = unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	return st, err
}

// Format is the file type bits of a mode.
func Format(mode uint32) uint32 { return mode & unix.S_IFMT }

// procPath names dir/name, or the file behind the handle dir if name is "", for
// calls that take no handle. The last step is only safe with calls that do not
// follow links.
func procPath(dir int, name string) string {
	p := "/proc/self/fd/" + strconv.Itoa(dir)
	if name != "" {
		p += "/" + name
	}
	return p
}
