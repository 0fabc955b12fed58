package archive

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/host/tree"
)

// Finish settles what Apply left for the time when the directories of the parents
// are known, nearest first: a link to a parent's file becomes a copy of it, a
// directory that had no entry gets owner, mode, times and extended attributes of
// the parents' (without one, it keeps 0755 and root), and a layer that hides the
// whole root gets a whiteout for each of the parents' names in it.
func Finish(ctx context.Context, dir string, u Unresolved, parents []string) error {
	if u.Empty() {
		return nil
	}
	attr := opaqueXattr(u.Whiteout)
	below, err := openMerged(attr, parents)
	if err != nil {
		return err
	}
	defer below.close()
	all, err := openMerged(attr, append([]string{dir}, parents...))
	if err != nil {
		return err
	}
	defer all.close()
	f := finisher{all: all, below: below, root: all.roots[0].fd, attr: attr, opaque: map[string]bool{}}
	for _, l := range u.Links {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := f.link(ctx, l); err != nil {
			return fmt.Errorf("hardlink %q to %q: %w", clip(l.Name), clip(l.Target), err)
		}
	}
	if u.Root {
		if err := f.hideRoot(); err != nil {
			return fmt.Errorf("hide the parents' root: %w", err)
		}
	}
	for _, d := range u.Dirs {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := f.inherit(d); err != nil {
			return fmt.Errorf("directory %q: %w", clip(d), err)
		}
	}
	return nil
}

type finisher struct {
	all, below *merged
	root       int             // the layer's own root
	attr       string          // of opaque directories
	opaque     map[string]bool // directories of this layer that see nothing of the parents
}

// link makes a link, or a copy where the target is a parent's: a file cannot have
// names in two layers.
func (f *finisher) link(ctx context.Context, l Link) error {
	up, name := split(l.Name)
	dir := f.root
	if up != "" {
		fd, err := tree.OpenDir(f.root, up)
		if gone(err) {
			return nil // a later entry took its directory's place
		}
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		dir = fd
	}
	switch st, err := tree.Stat(dir, name); {
	case errors.Is(err, unix.ENOENT):
	case err != nil:
		return err
	case !isWhiteout(&st):
		return nil // a later entry took its place
	}
	from, tname, err := f.all.file(l.Target)
	if gone(err) {
		return errs.New(errs.InvalidArgument, "neither this layer nor its parents have the target: %w", err)
	}
	if err != nil {
		return err
	}
	return keepTimes(dir, func() error {
		if err := unix.Unlinkat(dir, name, 0); err != nil && err != unix.ENOENT {
			return err
		}
		if from.layer == 0 {
			return unix.Linkat(from.fd, tname, dir, name, 0)
		}
		return tree.CopyFile(ctx, dir, name, from.fd, tname)
	})
}

// keepTimes runs do and gives the directory back the times it had.
func keepTimes(dir int, do func() error) error {
	var st unix.Stat_t
	if err := unix.Fstat(dir, &st); err != nil {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	return tree.SetTimes(dir, "", st.Atim, st.Mtim)
}

// inherit gives an implied directory the attributes of the parents' directory.
func (f *finisher) inherit(p string) error {
	hidden, err := f.hidden(p)
	if err != nil || hidden {
		return err
	}
	fd, err := tree.OpenDir(f.root, p)
	if gone(err) {
		return nil // a later entry took its place
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	from, err := f.below.dir(p)
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return tree.CopyAttr(fd, "", from[0].fd, "")
}

// hidden reports whether p or a directory above it is opaque in this layer.
func (f *finisher) hidden(p string) (bool, error) {
	if p == "" {
		return isOpaque(f.root, f.attr), nil
	}
	if h, ok := f.opaque[p]; ok {
		return h, nil
	}
	up, _ := split(p)
	h, err := f.hidden(up)
	if err != nil {
		return false, err
	}
	if !h {
		fd, err := tree.OpenDir(f.root, p)
		if gone(err) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		h = isOpaque(fd, f.attr)
		unix.Close(fd)
	}
	f.opaque[p] = h
	return h, nil
}

// hideRoot marks each name that the parents' root has.
func (f *finisher) hideRoot() error {
	return keepTimes(f.root, func() error {
		for _, l := range f.below.roots {
			list, err := tree.Entries(l.fd)
			if err != nil {
				return err
			}
			for _, e := range list {
				if err := f.hide(e.Name); err != nil {
					return fmt.Errorf("%q: %w", clip(e.Name), err)
				}
			}
		}
		return nil
	})
}

func (f *finisher) hide(name string) error {
	err := unix.Mknodat(f.root, name, unix.S_IFCHR, 0)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	fd, err := tree.OpenDir(f.root, name)
	if gone(err) {
		return nil // not a directory: it hides what is below as it is
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Fsetxattr(fd, f.attr, []byte("y"), 0)
}
