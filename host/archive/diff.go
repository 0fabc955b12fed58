package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/spec"
	"github.com/berthd/berth/host/tree"
)

// DiffOptions are the choices of a diff.
type DiffOptions struct {
	// Epoch, where not zero, is the latest time that any entry may have
	// (reproducible-builds.org, SOURCE_DATE_EPOCH).
	Epoch time.Time
	// Whiteout says, for DiffUpper, how the directory marks deletions.
	Whiteout spec.Whiteout
}

// maxDepth bounds the levels of a diff: each holds two handles.
const maxDepth = 2100

// Diff writes the layer that turns lower into upper, two trees as a container sees
// them, as plain tar. lower may be "" for nothing. Entries are sorted, so equal
// trees give equal bytes. Files count as equal if attributes and size are, and
// their times to the nanosecond; where both times are whole seconds, contents are
// compared too. Attributes of the roots and sockets have no place in a layer.
func Diff(ctx context.Context, w io.Writer, lower, upper string, o DiffOptions) error {
	up, err := tree.OpenRoot(upper)
	if err != nil {
		return err
	}
	defer unix.Close(up)
	low := -1
	if lower != "" {
		if low, err = tree.OpenRoot(lower); err != nil {
			return err
		}
		defer unix.Close(low)
	}
	d := &differ{ctx: ctx, links: map[inode][]string{}}
	if err := d.dir(low, up, "", 0); err != nil {
		return fmt.Errorf("compare %s with %s: %w", upper, lower, err)
	}
	d.addLinked()
	if err := writeLayer(ctx, w, up, d.changes, o); err != nil {
		return fmt.Errorf("diff of %s: %w", upper, err)
	}
	return nil
}

type inode struct{ dev, ino uint64 }

// changeKind says what is to be written for a path.
type changeKind uint8

const (
	present changeKind = iota // as it is now
	deleted                   // a whiteout
	opaque                    // an opaque directory's mark, inside it
)

type pathChange struct {
	path string
	kind changeKind
}

type differ struct {
	ctx     context.Context
	changes []pathChange
	links   map[inode][]string // unchanged names of files that have several
	changed map[inode]bool     // files of several names, one of which changed
	parents []string           // directories above the current one that are not written yet
}

// dir compares two directories; low is -1 where there is none.
func (d *differ) dir(low, up int, path string, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%q: more than %d levels: %w", clip(path), maxDepth, unix.ELOOP)
	}
	if d.ctx.Err() != nil {
		return context.Cause(d.ctx)
	}
	ups, err := tree.SortedEntries(up)
	if err != nil {
		return err
	}
	var lows []tree.Entry
	if low >= 0 {
		if lows, err = tree.SortedEntries(low); err != nil {
			return err
		}
	}
	for len(ups) > 0 || len(lows) > 0 {
		switch {
		case len(ups) == 0 || len(lows) > 0 && lows[0].Name < ups[0].Name:
			d.add(path+lows[0].Name, deleted)
			lows = lows[1:]
		case len(lows) == 0 || ups[0].Name < lows[0].Name:
			err = d.entry(-1, up, path, ups[0].Name, depth)
			ups = ups[1:]
		default:
			err = d.entry(low, up, path, ups[0].Name, depth)
			ups, lows = ups[1:], lows[1:]
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// entry compares one name, which low may not have (-1).
func (d *differ) entry(low, up int, path, name string, depth int) error {
	full := path + name
	if err := writable(name); err != nil {
		return fmt.Errorf("%q: %w", clip(path), err)
	}
	st, err := tree.Stat(up, name)
	if errors.Is(err, unix.ENOENT) {
		return nil // gone since it was listed
	}
	if err != nil {
		return fmt.Errorf("%q: %w", clip(full), err)
	}
	same, was := false, unix.Stat_t{}
	if low >= 0 {
		if was, err = tree.Stat(low, name); err != nil {
			return fmt.Errorf("%q: %w", clip(full), err)
		}
		if same, err = sameFile(low, up, name, &was, &st); err != nil {
			return fmt.Errorf("compare %q: %w", clip(full), err)
		}
	}
	isDir := tree.Format(st.Mode) == unix.S_IFDIR
	if !same {
		d.add(full, present)
	}
	if !isDir {
		d.note(full, same, &st)
		return nil
	}
	if low < 0 || tree.Format(was.Mode) != unix.S_IFDIR {
		low = -1
	}
	if same {
		d.parents = append(d.parents, full)
		defer func() { // unless a change below has had it written
			if n := len(d.parents); n > 0 && d.parents[n-1] == full {
				d.parents = d.parents[:n-1]
			}
		}()
	}
	return d.both(low, up, name, full+"/", depth)
}

// both opens the directories of one name and compares them.
func (d *differ) both(low, up int, name, path string, depth int) error {
	u, err := tree.OpenDir(up, name)
	if err != nil {
		return fmt.Errorf("open %q: %w", clip(path), err)
	}
	defer unix.Close(u)
	l := -1
	if low >= 0 {
		if l, err = tree.OpenDir(low, name); err != nil {
			return fmt.Errorf("open lower %q: %w", clip(path), err)
		}
		defer unix.Close(l)
	}
	return d.dir(l, u, path, depth+1)
}

// add notes a change, after the unchanged directories that it is in: a layer names
// them so that nobody has to guess their attributes.
func (d *differ) add(path string, k changeKind) {
	for _, p := range d.parents {
		d.changes = append(d.changes, pathChange{p, present})
	}
	d.parents = d.parents[:0]
	d.changes = append(d.changes, pathChange{path, k})
}

// note remembers files with several names: if one name changed, all are written,
// else they would be two files.
func (d *differ) note(path string, same bool, st *unix.Stat_t) {
	if st.Nlink < 2 {
		return
	}
	key := inode{st.Dev, st.Ino}
	if same {
		d.links[key] = append(d.links[key], path)
		return
	}
	if d.changed == nil {
		d.changed = map[inode]bool{}
	}
	d.changed[key] = true
}

func (d *differ) addLinked() {
	n := len(d.changes)
	for key := range d.changed {
		for _, p := range d.links[key] {
			for up, _ := split(p); up != ""; up, _ = split(up) {
				d.changes = append(d.changes, pathChange{up, present})
			}
			d.changes = append(d.changes, pathChange{p, present})
		}
	}
	if n == len(d.changes) {
		return
	}
	slices.SortFunc(d.changes, func(a, b pathChange) int { return comparePaths(a.path, b.path) })
	d.changes = slices.Compact(d.changes)
}

// comparePaths orders as a walk does: a directory, what is in it, its next sibling.
func comparePaths(a, b string) int {
	for {
		x, as, amore := strings.Cut(a, "/")
		y, bs, bmore := strings.Cut(b, "/")
		if c := strings.Compare(x, y); c != 0 {
			return c
		}
		switch {
		case !amore && !bmore:
			return 0
		case !amore:
			return -1
		case !bmore:
			return 1
		}
		a, b = as, bs
	}
}

// sameFile reports whether nothing that a layer holds differs.
func sameFile(low, up int, name string, a, b *unix.Stat_t) (bool, error) {
	if a.Dev == b.Dev && a.Ino == b.Ino {
		return true, nil
	}
	if a.Mode != b.Mode || a.Uid != b.Uid || a.Gid != b.Gid || a.Rdev != b.Rdev {
		return false, nil
	}
	if same, err := sameXattrs(low, up, name); !same || err != nil {
		return false, err
	}
	switch tree.Format(a.Mode) {
	case unix.S_IFDIR:
		return true, nil // its times change with what is in it
	case unix.S_IFLNK:
		x, err := tree.Readlink(low, name)
		if err != nil {
			return false, err
		}
		y, err := tree.Readlink(up, name)
		return x == y, err
	case unix.S_IFREG:
		if a.Size != b.Size || a.Mtim != b.Mtim {
			return false, nil
		}
		if a.Mtim.Nsec != 0 || a.Size == 0 {
			return true, nil
		}
		return sameContents(low, up, name)
	}
	return a.Mtim == b.Mtim, nil
}

func sameXattrs(low, up int, name string) (bool, error) {
	x, err := layerXattrs(low, name)
	if err != nil {
		return false, err
	}
	y, err := layerXattrs(up, name)
	if err != nil || len(x) != len(y) {
		return false, err
	}
	for k, v := range x {
		if w, ok := y[k]; !ok || w != v {
			return false, nil
		}
	}
	return true, nil
}

// layerXattrs are the extended attributes that belong to an image, not to this
// machine: capabilities, ACLs and users' own, as PAX records.
func layerXattrs(dir int, name string) (map[string]string, error) {
	list, err := tree.Xattrs(dir, name)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, x := range list {
		own := strings.HasPrefix(x.Name, "user.") || strings.HasPrefix(x.Name, "system.posix_acl_") || x.Name == "security.capability"
		if own && !tree.OverlayOwn(x.Name) {
			out[paxXattr+x.Name] = string(x.Value)
		}
	}
	return out, nil
}

func sameContents(low, up int, name string) (bool, error) {
	a, err := openFile(low, name)
	if err != nil {
		return false, err
	}
	defer a.Close()
	b, err := openFile(up, name)
	if err != nil {
		return false, err
	}
	defer b.Close()
	x, y := make([]byte, chunkSize), make([]byte, chunkSize)
	for {
		n, err := io.ReadFull(a, x)
		m, err2 := io.ReadFull(b, y)
		if n != m || string(x[:n]) != string(y[:m]) {
			return false, nil
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return err == err2, nil //nolint:errorlint // both of io.ReadFull, which wraps neither
		}
		if err := errors.Join(err, err2); err != nil {
			return false, err
		}
	}
}

// writable refuses names that would delete where the layer is unpacked.
func writable(name string) error {
	if strings.HasPrefix(name, whiteoutPrefix) {
		return errs.New(errs.InvalidArgument, "file %q cannot be in a layer: there its name means a deletion", clip(name))
	}
	return nil
}

var errRedirect = errs.New(errs.Unimplemented, "overlay renamed this directory in place: compare the mounted trees")
