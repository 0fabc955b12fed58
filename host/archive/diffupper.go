package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/host/tree"
)

// DiffUpper writes the layer that an overlay upper directory is, without looking
// at all of its parents' files. parents, nearest first, say which deletions and
// opaque marks hide anything; the others are left out. An upper directory that
// says more than a layer can (redirects, metadata without data) is an error of
// kind Unimplemented: then Diff on the mounted trees does it.
func DiffUpper(ctx context.Context, w io.Writer, upper string, parents []string, o DiffOptions) error {
	root, err := tree.OpenRoot(upper)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	below, err := openMerged(opaqueXattr(o.Whiteout), parents)
	if err != nil {
		return err
	}
	defer below.close()
	u := &upperWalk{ctx: ctx, below: below}
	if err := u.dir(root, "", 0); err != nil {
		return fmt.Errorf("read upper directory %s: %w", upper, err)
	}
	if err := writeLayer(ctx, w, root, u.changes, o); err != nil {
		return fmt.Errorf("diff of upper directory %s: %w", upper, err)
	}
	return nil
}

type upperWalk struct {
	ctx     context.Context
	below   *merged
	changes []pathChange
}

func (u *upperWalk) dir(fd int, path string, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%q: more than %d levels: %w", clip(path), maxDepth, unix.ELOOP)
	}
	if u.ctx.Err() != nil {
		return context.Cause(u.ctx)
	}
	list, err := tree.SortedEntries(fd)
	if err != nil {
		return err
	}
	for _, e := range list {
		if err := u.entry(fd, path, e.Name, depth); err != nil {
			return fmt.Errorf("%q: %w", clip(e.Name), err)
		}
	}
	return nil
}

func (u *upperWalk) entry(fd int, path, name string, depth int) error {
	if err := writable(name); err != nil {
		return err
	}
	st, err := tree.Stat(fd, name)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	full := path + name
	switch {
	case isWhiteout(&st):
		hides, err := u.hides(full, false)
		if err == nil && hides {
			u.changes = append(u.changes, pathChange{full, deleted})
		}
		return err
	case tree.Format(st.Mode) == unix.S_IFREG:
		if err := u.whole(fd, name, "metacopy"); err != nil {
			return err
		}
	}
	u.changes = append(u.changes, pathChange{full, present})
	if tree.Format(st.Mode) != unix.S_IFDIR {
		return nil
	}
	sub, err := tree.OpenDir(fd, name)
	if err != nil {
		return err
	}
	defer unix.Close(sub)
	if err := u.whole(sub, "", "redirect"); err != nil {
		return err
	}
	if isOpaque(sub, u.below.opaque) {
		hides, err := u.hides(full, true)
		if err != nil {
			return err
		}
		if hides {
			u.changes = append(u.changes, pathChange{full, opaque})
		}
	}
	return u.dir(sub, full+"/", depth+1)
}

// whole refuses a file of which overlay keeps a part elsewhere.
func (u *upperWalk) whole(fd int, name, what string) error {
	_, err := tree.GetXattr(fd, name, strings.TrimSuffix(u.below.opaque, "opaque")+what)
	switch {
	case err == nil:
		return errRedirect
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOTSUP):
		return nil
	}
	return err
}

// hides reports whether the parents have anything at path, or a directory.
func (u *upperWalk) hides(path string, onlyDir bool) (bool, error) {
	up, name := split(path)
	s, err := u.below.dir(up)
	if err != nil {
		return false, ignoreGone(err)
	}
	next, target, err := u.below.down(s, name)
	next.close()
	if errors.Is(err, unix.ENOTDIR) { // a file
		return !onlyDir, nil
	}
	return next != nil || target != "" && !onlyDir, ignoreGone(err)
}

func ignoreGone(err error) error {
	if gone(err) {
		return nil
	}
	return err
}
