package archive

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/host/tree"
)

const (
	maxHandles = 128 // open directories of one Apply
	maxLinks   = 40  // links followed for one name, as the kernel (path_resolution(7))
)

// handle is an open directory below the root. Its path holds no link. While it is
// open it may be written to; when it closes it gets the times that it had, or
// that its header says.
type handle struct {
	fd           int
	path         string // "" is the root
	used         uint64
	pinned       bool // not to be closed now
	dirty        bool // its times are not what they should be
	atime, mtime unix.Timespec
	gid          uint32
}

// handles finds directories by the names that a layer uses. Links are read and
// resolved here, step by step, inside the root, so that the kernel never follows
// one for us:
//
//	"a/b/c"  →  handle of a/b/c itself, or
//	            handle of a, link "b" → "../x"  →  handle of x  →  handle of x/c
type handles struct {
	root    *handle
	open    map[string]*handle
	clock   uint64
	last    *handle // what the name lastDir was found to be
	lastDir string
	implied func(path string) error // told of each directory that had to be made
	opaque  string                  // the attribute of an opaque directory; "" without whiteouts
}

func openHandles(dir string) (*handles, error) {
	fd, err := tree.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	h := &handles{open: map[string]*handle{}}
	if h.root, err = newHandle(fd, ""); err != nil {
		return nil, err
	}
	return h, nil
}

func newHandle(fd int, path string) (*handle, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("read attributes of %q: %w", clip(path), err)
	}
	return &handle{fd: fd, path: path, atime: st.Atim, mtime: st.Mtim, gid: st.Gid}, nil
}

// settle gives a directory its times.
func (h *handle) settle() error {
	if !h.dirty {
		return nil
	}
	h.dirty = false
	if err := tree.SetTimes(h.fd, "", h.atime, h.mtime); err != nil {
		return fmt.Errorf("directory %q: %w", clip(h.path), err)
	}
	return nil
}

func (h *handle) child(name string) string {
	if h.path == "" {
		return name
	}
	return h.path + "/" + name
}

// close settles and closes everything.
func (d *handles) close() error {
	err := d.root.settle()
	unix.Close(d.root.fd)
	for _, h := range d.open {
		err = errors.Join(err, h.settle())
		unix.Close(h.fd)
	}
	return err
}

// add keeps an open directory, in place of the one that was used longest ago.
func (d *handles) add(fd int, p string) (*handle, error) {
	h, err := newHandle(fd, p)
	if err != nil {
		return nil, err
	}
	if len(d.open) >= maxHandles {
		if err := d.dropOldest(); err != nil {
			unix.Close(fd)
			return nil, err
		}
	}
	d.open[p] = h
	d.touch(h)
	return h, nil
}

func (d *handles) dropOldest() error {
	var oldest *handle
	for _, o := range d.open {
		if !o.pinned && (oldest == nil || o.used < oldest.used) {
			oldest = o
		}
	}
	return d.drop(oldest)
}

func (d *handles) touch(h *handle) {
	d.clock++
	h.used = d.clock
}

func (d *handles) drop(h *handle) error {
	delete(d.open, h.path)
	if d.last == h {
		d.last = nil
	}
	err := h.settle()
	unix.Close(h.fd)
	return err
}

// forget drops the directory at p and all below it: it is about to be removed.
// Names that were found through a link are found anew.
func (d *handles) forget(p string) {
	d.last = nil
	for q, h := range d.open {
		if within(q, p) {
			delete(d.open, q)
			unix.Close(h.fd)
		}
	}
}

// dir returns the directory that the cleaned name p means, and makes what is
// missing on the way. The handle is good until the next call that may open.
func (d *handles) dir(p string) (*handle, error) { return d.find(p, true) }

// existing is dir without making anything: what is missing is ENOENT.
func (d *handles) existing(p string) (*handle, error) { return d.find(p, false) }

func (d *handles) find(p string, make bool) (*handle, error) {
	if p == "" {
		return d.root, nil
	}
	if d.last != nil && d.lastDir == p {
		return d.last, nil
	}
	links := 0
	h, err := d.resolve(p, make, &links)
	if err != nil {
		return nil, err
	}
	d.touch(h)
	d.last, d.lastDir = h, p
	return h, nil
}

func (d *handles) resolve(p string, make bool, links *int) (*handle, error) {
	if p == "" {
		return d.root, nil
	}
	if h := d.open[p]; h != nil {
		return h, nil
	}
	if fd, err := tree.OpenDir(d.root.fd, p); err == nil {
		return d.add(fd, p)
	}
	up, name := split(p)
	h, err := d.resolve(up, make, links)
	if err != nil {
		return nil, err
	}
	return d.step(h, name, make, links)
}

// step goes from a directory to one name in it.
func (d *handles) step(h *handle, name string, make bool, links *int) (*handle, error) {
	p := h.child(name)
	if len(p) >= unix.PathMax {
		return nil, errs.New(errs.InvalidArgument, "the path has %d bytes, at most %d are allowed", len(p), unix.PathMax-1)
	}
	if o := d.open[p]; o != nil {
		return o, nil
	}
	fd, err := tree.OpenDir(h.fd, name)
	switch {
	case err == nil:
		return d.add(fd, p)
	case errors.Is(err, unix.ENOENT) && make:
		return d.make(h, name, p)
	case errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR):
		return d.follow(h, name, make, links)
	}
	return nil, fmt.Errorf("open directory %q: %w", clip(p), err)
}

func (d *handles) make(h *handle, name, p string) (*handle, error) {
	h.dirty = true
	if err := unix.Mkdirat(h.fd, name, 0o755); err != nil {
		return nil, fmt.Errorf("make directory %q: %w", clip(p), err)
	}
	fd, err := tree.OpenDir(h.fd, name)
	if err != nil {
		return nil, fmt.Errorf("open new directory %q: %w", clip(p), err)
	}
	n, err := d.add(fd, p)
	if err != nil {
		return nil, err
	}
	if err := unix.Fchmod(fd, 0o755); err != nil { // whatever umask and ACLs say
		return nil, fmt.Errorf("set mode of %q: %w", clip(p), err)
	}
	if n.gid != 0 {
		if err := tree.Chown(fd, "", 0, 0); err != nil {
			return nil, fmt.Errorf("directory %q: %w", clip(p), err)
		}
		n.gid = 0
	}
	return n, d.implied(p)
}

// unhide replaces a whiteout of this layer by a directory that hides as much; nil
// if h/name is something else.
func (d *handles) unhide(h *handle, name, p string) (*handle, error) {
	st, err := tree.Stat(h.fd, name)
	if err != nil || !isWhiteout(&st) {
		return nil, err
	}
	if err := unix.Unlinkat(h.fd, name, 0); err != nil {
		return nil, fmt.Errorf("replace whiteout %q: %w", clip(p), err)
	}
	n, err := d.make(h, name, p)
	if err != nil {
		return nil, err
	}
	return n, setOpaque(n, d.opaque)
}

func setOpaque(h *handle, attr string) error {
	if err := unix.Fsetxattr(h.fd, attr, []byte("y"), 0); err != nil {
		return fmt.Errorf("make directory %q opaque: %w", clip(h.path), err)
	}
	return nil
}

// follow reads the link h/name and goes where it leads, never above the root.
func (d *handles) follow(h *handle, name string, make bool, links *int) (*handle, error) {
	p := h.child(name)
	target, err := tree.Readlink(h.fd, name)
	if errors.Is(err, unix.EINVAL) {
		if make && d.opaque != "" {
			if h, err := d.unhide(h, name, p); h != nil || err != nil {
				return h, err
			}
		}
		return nil, errs.New(errs.InvalidArgument, "%q is in the way: %w", clip(p), unix.ENOTDIR)
	}
	if err != nil {
		return nil, fmt.Errorf("%q: %w", clip(p), err)
	}
	if *links++; *links > maxLinks {
		return nil, errs.New(errs.InvalidArgument, "more than %d links from %q: %w", maxLinks, clip(p), unix.ELOOP)
	}
	at := h.path // a path, not a handle: each step may close handles
	if strings.HasPrefix(target, "/") {
		at = ""
	}
	for part := range strings.SplitSeq(target, "/") {
		switch part {
		case "", ".":
			continue
		case "..":
			at, _ = split(at)
			continue
		}
		from, err := d.resolve(at, make, links)
		if err != nil {
			return nil, err
		}
		to, err := d.step(from, part, make, links)
		if err != nil {
			return nil, err
		}
		at = to.path
	}
	return d.resolve(at, make, links)
}

// within reports whether the path p is top or below it.
func within(p, top string) bool { return p == top || strings.HasPrefix(p, top+"/") }

// clean makes the name of an entry a path below the root: "" is the root itself.
// ".." cannot lead above it.
func clean(name string) (string, error) {
	if len(name) >= unix.PathMax {
		return "", errs.New(errs.InvalidArgument, "the name has %d bytes, at most %d are allowed", len(name), unix.PathMax-1)
	}
	return strings.TrimPrefix(path.Clean("/"+name), "/"), nil
}

// split cuts the last step off a cleaned path.
func split(p string) (dir, name string) {
	if i := strings.LastIndexByte(p, '/'); i >= 0 {
		return p[:i], p[i+1:]
	}
	return "", p
}
