package archive

import (
	"archive/tar"
	"errors"
	"fmt"
	"hash/maphash"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/spec"
	"github.com/berthd/berth/host/tree"
)

// The names that delete (image-spec, layer.md, "Whiteouts").
const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
	whiteoutMeta   = ".wh..wh." // other bookkeeping of AUFS, without meaning here
)

func isWhiteout(st *unix.Stat_t) bool { return tree.Format(st.Mode) == unix.S_IFCHR && st.Rdev == 0 }

// isMark reports whether an entry is overlay's own mark of a deletion, which some
// tools leave in layers. It means the same here whatever the style.
func isMark(hdr *tar.Header) bool {
	return hdr.Typeflag == tar.TypeChar && hdr.Devmajor == 0 && hdr.Devminor == 0
}

// opaqueXattr is the attribute that hides what lies below a directory, "" where
// the style has none (Documentation/filesystems/overlayfs.rst).
func opaqueXattr(w spec.Whiteout) string {
	switch w {
	case spec.WhiteoutOverlay:
		return "trusted.overlay.opaque"
	case spec.WhiteoutOverlayUser:
		return "user.overlay.opaque"
	}
	return ""
}

func (a *applier) opaque() string { return a.dirs.opaque }

// whiteout deletes what the parents have and never what this layer has, before or
// after it in the stream.
func (a *applier) whiteout(dir *handle, name string, hdr *tar.Header) error {
	if name == whiteoutOpaque {
		if a.opaque() == "" {
			return a.clearDir(dir)
		}
		if dir == a.dirs.root { // overlay ignores the mark on its roots
			a.pending.root = true
		}
		return setOpaque(dir, a.opaque())
	}
	gone := name[len(whiteoutPrefix):]
	switch {
	case gone == "" || gone == "." || gone == "..":
		return errs.New(errs.InvalidArgument, "the whiteout names nothing")
	case strings.HasPrefix(name, whiteoutMeta):
		return nil
	}
	return a.gone(dir, gone, hdr)
}

// gone deletes the parents' name.
func (a *applier) gone(dir *handle, name string, hdr *tar.Header) error {
	if a.opaque() == "" {
		return a.removeBelow(dir, name)
	}
	return a.markGone(dir, name, hdr)
}

// markGone makes overlay's mark. Where this layer has something of that name, it
// hides the parents' already, unless both are directories.
func (a *applier) markGone(dir *handle, name string, hdr *tar.Header) error {
	dir.dirty = true
	err := unix.Mknodat(dir.fd, name, unix.S_IFCHR, 0)
	if err == nil {
		if hdr.Uid == 0 && hdr.Gid == 0 && a.euid == 0 && dir.gid == 0 {
			return nil
		}
		at, err := a.attrs(hdr)
		if err != nil {
			return err
		}
		return tree.Chown(dir.fd, name, at.uid, at.gid)
	}
	if !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make whiteout: %w", err)
	}
	st, err := tree.Stat(dir.fd, name)
	if err != nil || tree.Format(st.Mode) != unix.S_IFDIR {
		return err
	}
	links := 0
	h, err := a.dirs.step(dir, name, false, &links)
	if err != nil {
		return err
	}
	return setOpaque(h, a.opaque())
}

// removeBelow deletes name, but for what this layer put there.
func (a *applier) removeBelow(dir *handle, name string) error {
	dir.dirty = true
	p := dir.child(name)
	if !a.own.has(p) {
		return a.clear(dir, name)
	}
	st, err := tree.Stat(dir.fd, name)
	if err != nil || tree.Format(st.Mode) != unix.S_IFDIR {
		return err
	}
	links := 0
	h, err := a.dirs.step(dir, name, false, &links)
	if err != nil {
		return err
	}
	return a.clearDir(h)
}

// clearDir deletes everything in dir, at any depth, that is not this layer's. Each
// directory is walked once in an Apply: what comes later is this layer's anyway
// (GHSA-rp3h-jf77-q9p4).
func (a *applier) clearDir(dir *handle) error {
	if !a.own.clearing(dir.path) {
		return nil
	}
	list, err := tree.Entries(dir.fd)
	if err != nil {
		return err
	}
	p := dir.path
	for _, e := range list {
		if dir, err = a.dirs.dir(p); err != nil { // the one before may have closed it
			return err
		}
		if err := a.removeBelow(dir, e.Name); err != nil {
			return fmt.Errorf("clear %q: %w", clip(e.Name), err)
		}
	}
	return nil
}

// ownFiles knows what this layer wrote, by 64-bit hashes under a seed that no
// image can know. The zero value knows nothing and keeps nothing.
type ownFiles struct {
	seed    maphash.Seed
	wrote   map[uint64]struct{}
	cleared map[uint64]struct{}
}

func newOwnFiles() ownFiles {
	return ownFiles{maphash.MakeSeed(), map[uint64]struct{}{}, map[uint64]struct{}{}}
}

// add notes p and the directories above it.
func (o *ownFiles) add(p string) {
	for o.wrote != nil && p != "" && !o.has(p) {
		o.wrote[maphash.String(o.seed, p)] = struct{}{}
		p, _ = split(p)
	}
}

func (o *ownFiles) has(p string) bool {
	_, ok := o.wrote[maphash.String(o.seed, p)]
	return ok
}

// clearing notes that the directory p gets cleared; false if it was before.
func (o *ownFiles) clearing(p string) bool {
	h := maphash.String(o.seed, p)
	_, before := o.cleared[h]
	o.cleared[h] = struct{}{}
	return !before
}
