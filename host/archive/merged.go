package archive

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/host/tree"
)

// merged looks names up in a stack of layer directories as overlay would show
// them, nearest first: whiteouts end a search, opaque directories hide what is
// below, a directory over a directory is both.
type merged struct {
	opaque   string // the attribute of opaque directories
	roots    dirSet
	last     dirSet // what lastPath was found to be; nil if not kept
	lastPath string
}

// dirSet is one directory of the merged view: the layers that have it.
type dirSet []layerDir

type layerDir struct {
	layer int
	fd    int
}

func (s dirSet) close() {
	for _, l := range s {
		unix.Close(l.fd)
	}
}

func openMerged(opaque string, dirs []string) (*merged, error) {
	m := &merged{opaque: opaque}
	for i, d := range dirs {
		fd, err := tree.OpenRoot(d)
		if err != nil {
			m.close()
			return nil, err
		}
		m.roots = append(m.roots, layerDir{i, fd})
	}
	return m, nil
}

func (m *merged) close() {
	m.roots.close()
	m.last.close()
}

// dir finds the directory p, through links; the set is good until the next call.
func (m *merged) dir(p string) (dirSet, error) {
	if p == "" {
		return m.roots, nil
	}
	if m.last != nil && m.lastPath == p {
		return m.last, nil
	}
	s, err := m.walk(p)
	if err != nil {
		return nil, err
	}
	m.last.close()
	m.last, m.lastPath = s, p
	return s, nil
}

// walk goes down from the root. up holds the sets that ".." leads back to; the
// set that is returned is the caller's to close.
func (m *merged) walk(p string) (at dirSet, err error) {
	up := []dirSet{m.roots}
	defer func() {
		for i, s := range up {
			if i > 0 && (err != nil || i < len(up)-1) {
				s.close()
			}
		}
	}()
	back := func(to int) {
		for len(up) > to {
			up[len(up)-1].close()
			up = up[:len(up)-1]
		}
	}
	todo, links := strings.Split(p, "/"), 0
	for len(todo) > 0 {
		part := todo[0]
		todo = todo[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			back(max(1, len(up)-1))
			continue
		}
		next, target, err := m.down(up[len(up)-1], part)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", clip(part), err)
		}
		if target == "" {
			up = append(up, next)
			continue
		}
		if links++; links > maxLinks {
			return nil, errs.New(errs.InvalidArgument, "more than %d links: %w", maxLinks, unix.ELOOP)
		}
		if strings.HasPrefix(target, "/") {
			back(1)
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	if len(up) == 1 { // the caller closes what it gets
		return dupSet(m.roots)
	}
	return up[len(up)-1], nil
}

func dupSet(s dirSet) (out dirSet, err error) {
	for _, l := range s {
		fd, err := unix.FcntlInt(uintptr(l.fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			out.close()
			return nil, err
		}
		out = append(out, layerDir{l.layer, fd})
	}
	return out, nil
}

// down goes one step: to a directory, or to a link's target.
func (m *merged) down(s dirSet, name string) (next dirSet, target string, err error) {
	defer func() {
		if err != nil {
			next.close()
		}
	}()
	for _, l := range s {
		st, err := tree.Stat(l.fd, name)
		switch {
		case errors.Is(err, unix.ENOENT):
			continue
		case err != nil:
			return next, "", err
		case tree.Format(st.Mode) == unix.S_IFDIR:
			fd, err := tree.OpenDir(l.fd, name)
			if err != nil {
				return next, "", err
			}
			next = append(next, layerDir{l.layer, fd})
			if isOpaque(fd, m.opaque) {
				return next, "", nil
			}
			continue
		case next != nil:
			return next, "", nil
		case isWhiteout(&st):
			return nil, "", unix.ENOENT
		case tree.Format(st.Mode) == unix.S_IFLNK:
			target, err := tree.Readlink(l.fd, name)
			return nil, target, err
		}
		return nil, "", unix.ENOTDIR
	}
	if next == nil {
		return nil, "", unix.ENOENT
	}
	return next, "", nil
}

func isOpaque(fd int, attr string) bool {
	var b [1]byte
	n, err := unix.Fgetxattr(fd, attr, b[:])
	return err == nil && n == 1 && b[0] == 'y'
}

// file finds what is not a directory: in which layer's open directory, under
// which name. Links on the way are followed, the last step is not.
func (m *merged) file(p string) (in layerDir, name string, err error) {
	up, name := split(p)
	s, err := m.dir(up)
	if err != nil {
		return in, name, err
	}
	for _, l := range s {
		st, err := tree.Stat(l.fd, name)
		switch {
		case errors.Is(err, unix.ENOENT):
			continue
		case err != nil:
			return in, name, err
		case isWhiteout(&st):
			return in, name, unix.ENOENT
		case tree.Format(st.Mode) == unix.S_IFDIR:
			return in, name, unix.EISDIR
		}
		return l, name, nil
	}
	return in, name, unix.ENOENT
}

// gone reports whether err says that a name leads nowhere.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}
