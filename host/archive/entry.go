package archive

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/host/tree"
)

// attrs is what an entry says of its file, checked.
type attrs struct {
	uid, gid     uint32
	mode         uint32
	atime, mtime unix.Timespec
	xattrs       []tree.Xattr
}

func (a *applier) entry(ctx context.Context, s *stream, it item) error {
	err := a.place(ctx, s, &it)
	s.free(it.data)
	for err == nil && it.more { // contents that nobody wanted
		var ok bool
		if it, ok, err = s.next(ctx); err == nil && !ok {
			err = errEnded
		}
		s.free(it.data)
	}
	return err
}

// place finds where the entry belongs and writes it there.
func (a *applier) place(ctx context.Context, s *stream, it *item) error {
	p, err := clean(it.hdr.Name)
	if err != nil || p == "" {
		return err
	}
	up, name := split(p)
	if strings.HasPrefix(up, whiteoutPrefix) || strings.Contains(up, "/"+whiteoutPrefix) {
		return errs.New(errs.InvalidArgument, "a whiteout is not a directory")
	}
	dir, err := a.dirs.dir(up)
	if err != nil {
		return err
	}
	if strings.HasPrefix(name, whiteoutPrefix) {
		return a.whiteout(dir, name, it.hdr)
	}
	if isMark(it.hdr) {
		return a.gone(dir, name, it.hdr)
	}
	at, err := a.attrs(it.hdr)
	if err != nil {
		return err
	}
	a.own.add(dir.child(name))
	dir.dirty = true
	switch it.hdr.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		return a.regular(ctx, s, it, dir, name, at)
	case tar.TypeDir:
		return a.directory(dir, name, at)
	case tar.TypeSymlink:
		err = a.symlink(it.hdr, dir, name)
	case tar.TypeLink:
		return a.hardlink(it.hdr, dir, name, at)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		err = a.node(it.hdr, dir, name)
	default:
		return errs.New(errs.InvalidArgument, "entry type %q is not known", string(it.hdr.Typeflag))
	}
	if err != nil {
		return err
	}
	return a.dress(dir.fd, name, it.hdr.Typeflag, at)
}

// attrs checks what can wrap, overflow or belong to overlay.
func (a *applier) attrs(hdr *tar.Header) (attrs, error) {
	const nobody = 1<<32 - 1 // "leave as it is" to chown(2)
	if hdr.Uid < 0 || hdr.Uid >= nobody || hdr.Gid < 0 || hdr.Gid >= nobody {
		return attrs{}, errs.New(errs.InvalidArgument, "owner %d:%d is not a user and group id", hdr.Uid, hdr.Gid)
	}
	at := attrs{uid: uint32(hdr.Uid), gid: uint32(hdr.Gid), mode: uint32(hdr.Mode) & 0o7777}
	at.mtime = timespec(hdr.ModTime)
	at.atime = at.mtime
	if hdr.AccessTime.After(hdr.ModTime) {
		at.atime = timespec(hdr.AccessTime)
	}
	var err error
	at.xattrs, err = a.xattrs(hdr)
	return at, err
}

// timespec keeps what fits in 64 bits of nanoseconds since 1970; all else is 1970,
// as with the peers.
func timespec(t time.Time) unix.Timespec {
	if t.Unix() < 0 || t.After(time.Unix(0, 1<<63-1)) {
		return unix.Timespec{}
	}
	return unix.NsecToTimespec(t.UnixNano())
}

// again runs make, which fails with EEXIST where something is already, and then
// once more with that out of the way.
func (a *applier) again(dir *handle, name string, make func() error) error {
	err := make()
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	if err := a.clear(dir, name); err != nil {
		return err
	}
	return make()
}

// clear removes what an entry replaces.
func (a *applier) clear(dir *handle, name string) error {
	a.dirs.forget(dir.child(name))
	return tree.Remove(dir.fd, name)
}

func (a *applier) regular(ctx context.Context, s *stream, it *item, dir *handle, name string, at attrs) error {
	fd := -1
	err := a.again(dir, name, func() (err error) {
		fd, err = unix.Openat(dir.fd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, at.mode&0o777)
		return err
	})
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	w := fileWriter{fd: fd, size: it.hdr.Size, sparse: sparse(it.hdr)}
	err = w.write(it.data)
	for err == nil && it.more {
		s.free(it.data)
		var ok bool
		if *it, ok, err = s.next(ctx); err == nil && !ok {
			err = errEnded
		}
		if err == nil {
			err = w.write(it.data)
		}
	}
	if err == nil {
		err = w.finish()
	}
	if err == nil {
		err = a.dressOpen(fd, dir, at)
	}
	if e := unix.Close(fd); err == nil && e != nil {
		err = fmt.Errorf("close: %w", e)
	}
	return err
}

// dressOpen gives a new regular file its attributes; what creation already gave
// it is not set again. Owner first: it takes away set-id bits and capabilities.
func (a *applier) dressOpen(fd int, dir *handle, at attrs) error {
	if !a.isOwner(dir, at) {
		if err := tree.Chown(fd, "", at.uid, at.gid); err != nil {
			return err
		}
	}
	if err := setXattrs(fd, "", tar.TypeReg, at.xattrs); err != nil {
		return err
	}
	if a.acl || at.mode&(0o7000|a.umask) != 0 {
		if err := tree.Chmod(fd, "", at.mode); err != nil {
			return err
		}
	}
	return tree.SetTimes(fd, "", at.atime, at.mtime)
}

// isOwner reports whether a file that was just made in dir has its owner already;
// its group may be the directory's.
func (a *applier) isOwner(dir *handle, at attrs) bool {
	return at.uid == a.euid && at.gid == a.egid && dir.gid == a.egid
}

// dress gives a file that cannot be opened its attributes, by name in an open
// directory, never through a link.
func (a *applier) dress(dir int, name string, typeflag byte, at attrs) error {
	if err := tree.Chown(dir, name, at.uid, at.gid); err != nil {
		return err
	}
	if err := setXattrs(dir, name, typeflag, at.xattrs); err != nil {
		return err
	}
	if typeflag != tar.TypeSymlink {
		if err := tree.Chmod(dir, name, at.mode); err != nil {
			return err
		}
	}
	return tree.SetTimes(dir, name, at.atime, at.mtime)
}

func (a *applier) directory(dir *handle, name string, at attrs) error {
	p := dir.child(name)
	opaque := false
	if err := unix.Mkdirat(dir.fd, name, at.mode&0o777); err == unix.EEXIST {
		st, err := tree.Stat(dir.fd, name)
		if err != nil {
			return err
		}
		if tree.Format(st.Mode) != unix.S_IFDIR {
			opaque = a.opaque() != "" && isWhiteout(&st)
			if err := a.clear(dir, name); err != nil {
				return err
			}
			if err := unix.Mkdirat(dir.fd, name, at.mode&0o777); err != nil {
				return fmt.Errorf("make directory: %w", err)
			}
		}
	} else if err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	links := 0
	h, err := a.dirs.step(dir, name, false, &links)
	if err != nil {
		return err
	}
	delete(a.pending.dirs, p)
	a.dirs.touch(h)
	a.dirs.last, a.dirs.lastDir = h, p
	if opaque {
		if err := setOpaque(h, a.opaque()); err != nil {
			return err
		}
	}
	return a.dressDir(h, at)
}

func (a *applier) dressDir(h *handle, at attrs) error {
	if err := tree.Chown(h.fd, "", at.uid, at.gid); err != nil {
		return err
	}
	if err := setXattrs(h.fd, "", tar.TypeDir, at.xattrs); err != nil {
		return err
	}
	for _, x := range at.xattrs {
		a.acl = a.acl || x.Name == aclDefault
	}
	if err := tree.Chmod(h.fd, "", at.mode); err != nil {
		return err
	}
	h.gid = at.gid
	h.atime, h.mtime, h.dirty = at.atime, at.mtime, true
	return nil
}

func (a *applier) symlink(hdr *tar.Header, dir *handle, name string) error {
	err := a.again(dir, name, func() error { return unix.Symlinkat(hdr.Linkname, dir.fd, name) })
	if err != nil {
		return fmt.Errorf("make symlink to %q: %w", clip(hdr.Linkname), err)
	}
	return nil
}

func (a *applier) node(hdr *tar.Header, dir *handle, name string) error {
	kind := map[byte]uint32{tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}[hdr.Typeflag]
	dev := 0
	if hdr.Typeflag != tar.TypeFifo {
		if hdr.Devmajor < 0 || hdr.Devmajor >= 1<<12 || hdr.Devminor < 0 || hdr.Devminor >= 1<<20 {
			return errs.New(errs.InvalidArgument, "device %d:%d is not a device number", hdr.Devmajor, hdr.Devminor)
		}
		dev = int(unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor)))
	}
	err := a.again(dir, name, func() error { return unix.Mknodat(dir.fd, name, kind|0o600, dev) })
	if errors.Is(err, unix.EPERM) {
		return errs.New(errs.PermissionDenied, "make device %d:%d: not allowed in this user namespace: %w", hdr.Devmajor, hdr.Devminor, err)
	}
	if err != nil {
		return fmt.Errorf("make node: %w", err)
	}
	return nil
}

// hardlink links to a file of this layer. One that is not there may be the
// parents': with overlay's style that is for Finish to find out.
func (a *applier) hardlink(hdr *tar.Header, dir *handle, name string, at attrs) error {
	to, err := clean(hdr.Linkname)
	if err != nil {
		return fmt.Errorf("target: %w", err)
	}
	dir.pinned = true
	defer func() { dir.pinned = false }()
	tup, tname := split(to)
	if tname == "" {
		return errs.New(errs.InvalidArgument, "hardlink to the root")
	}
	from, err := a.dirs.existing(tup)
	if err == nil {
		err = a.link(from, tname, dir, name)
	}
	if errors.Is(err, unix.ENOENT) && a.opaque() != "" {
		if err := a.clear(dir, name); err != nil {
			return err
		}
		return a.pending.addLink(Link{Name: dir.child(name), Target: to})
	}
	if err != nil {
		return fmt.Errorf("hardlink to %q: %w", clip(hdr.Linkname), err)
	}
	return a.amend(dir.fd, name, at)
}

func (a *applier) link(from *handle, tname string, dir *handle, name string) error {
	st, err := tree.Stat(from.fd, tname)
	if err != nil {
		return err
	}
	if a.opaque() != "" && isWhiteout(&st) {
		return unix.ENOENT
	}
	if within(from.path, dir.child(name)) && from.path != "" {
		return errs.New(errs.InvalidArgument, "the target is inside what the link replaces")
	}
	if now, err := tree.Stat(dir.fd, name); err == nil && now.Dev == st.Dev && now.Ino == st.Ino {
		return nil // linked already, or to itself
	}
	return a.again(dir, name, func() error { return unix.Linkat(from.fd, tname, dir.fd, name, 0) })
}

// amend sets what a link's header says otherwise than its target's did.
func (a *applier) amend(dir int, name string, at attrs) error {
	st, err := tree.Stat(dir, name)
	if err != nil {
		return err
	}
	owner := st.Uid == at.uid && st.Gid == at.gid
	isLink := tree.Format(st.Mode) == unix.S_IFLNK
	if owner && (isLink || st.Mode&0o7777 == at.mode) && st.Mtim == at.mtime && len(at.xattrs) == 0 {
		return nil
	}
	typeflag := byte(tar.TypeReg)
	if isLink {
		typeflag = tar.TypeSymlink
	}
	return a.dress(dir, name, typeflag, at)
}
