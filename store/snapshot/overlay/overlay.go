// Package overlay keeps each snapshot as a directory of its own files and mounts
// it over its parents with overlayfs. It owns the directory that it is given:
//
//	<root>/snapshots/<id>/fs     the snapshot's own files (upperdir, then a layer)
//	<root>/snapshots/<id>/work   workdir; there if made above its parents
//	<root>/probe-…               the trial of New
//	<root>/probed                its outcome, for the kernel that runs
//
// It never mounts, but for that trial, and knows no names.
package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/label"
	"github.com/berthd/berth/base/spec"
	"github.com/berthd/berth/host/tree"
	"github.com/berthd/berth/store/snapshot"
	"github.com/berthd/berth/store/snapshot/dirs"
)

// Driver is the overlay driver.
type Driver struct {
	dirs  dirs.Dirs
	facts facts
}

// New opens or makes the driver's directory. It mounts a small overlay there to
// learn whether and how it works; that it does not is an error of kind
// FailedPrecondition. Options are added to those of every mount, as "volatile".
func New(root string, options ...string) (*Driver, error) {
	d, err := dirs.Open(root)
	if err != nil {
		return nil, fmt.Errorf("overlay snapshots: %w", err)
	}
	f, err := probe(d.Root(), options)
	if err != nil {
		return nil, errs.New(errs.FailedPrecondition, "overlay does not work in %s: %w", d.Root(), err)
	}
	return &Driver{d, f}, nil
}

func (d *Driver) fs(id uint64) string   { return filepath.Join(d.dirs.Path(id), "fs") }
func (d *Driver) work(id uint64) string { return filepath.Join(d.dirs.Path(id), "work") }

// Root implements snapshot.Driver.
func (d *Driver) Root() string { return d.dirs.Root() }

// Capabilities implements snapshot.Driver. In a user namespace no layer may be
// filled before its parents: whiteouts cannot be made there on every kernel.
func (d *Driver) Capabilities() []snapshot.Capability {
	var out []snapshot.Capability
	if !d.facts.userns {
		out = append(out, snapshot.CapRebase)
	}
	if d.facts.remap {
		out = append(out, snapshot.CapRemapIDs, snapshot.CapOnlyRemaps)
	}
	return out
}

// Make implements snapshot.Driver.
func (d *Driver) Make(ctx context.Context, l snapshot.Layer) error {
	if err := d.Remove(ctx, l.ID); err != nil {
		return err
	}
	if err := d.make(l); err != nil {
		return fmt.Errorf("make overlay snapshot %d: %w", l.ID, err)
	}
	return nil
}

func (d *Driver) make(l snapshot.Layer) error {
	if err := os.Mkdir(d.dirs.Path(l.ID), 0o700); err != nil {
		return err
	}
	if l.Kind == snapshot.Active && len(l.Parents) > 0 {
		if err := os.Mkdir(d.work(l.ID), 0o711); err != nil {
			return err
		}
	}
	if err := os.Mkdir(d.fs(l.ID), 0o755); err != nil {
		return err
	}
	if err := d.dressRoot(l); err != nil {
		return err
	}
	uid, gid, ok, err := mappedRoot(l.Labels)
	if err != nil || !ok || !d.facts.remap {
		return err
	}
	return os.Lchown(d.fs(l.ID), uid, gid)
}

// dressRoot gives the snapshot's root the attributes of its parent's: overlay
// shows those of the topmost layer.
func (d *Driver) dressRoot(l snapshot.Layer) error {
	if len(l.Parents) == 0 {
		return os.Chmod(d.fs(l.ID), 0o755) // whatever the umask
	}
	parent, err := tree.OpenRoot(d.fs(l.Parents[0]))
	if err != nil {
		return fmt.Errorf("parent %d: %w", l.Parents[0], err)
	}
	defer unix.Close(parent)
	own, err := tree.OpenRoot(d.fs(l.ID))
	if err != nil {
		return err
	}
	defer unix.Close(own)
	return tree.CopyAttr(own, "", parent, "")
}

// mappedRoot is the host's owner for root in the container, by the labels.
func mappedRoot(labels map[string]string) (uid, gid int, ok bool, err error) {
	u, g := labels[label.SnapshotUIDMap], labels[label.SnapshotGIDMap]
	if u == "" || g == "" {
		return 0, 0, false, nil
	}
	if uid, err = hostOfRoot(u); err != nil {
		return 0, 0, false, err
	}
	gid, err = hostOfRoot(g)
	return uid, gid, true, err
}

// hostOfRoot reads container:host:size, several joined by commas.
func hostOfRoot(m string) (int, error) {
	for one := range strings.SplitSeq(m, ",") {
		var c, h, n int64
		if _, err := fmt.Sscanf(one, "%d:%d:%d", &c, &h, &n); err != nil {
			return 0, errs.New(errs.InvalidArgument, "id mapping %q: want container:host:size", m)
		}
		if c <= 0 && 0 < c+n {
			return int(h - c), nil
		}
	}
	return 0, errs.New(errs.InvalidArgument, "id mapping %q: root is not mapped", m)
}

// Mounts implements snapshot.Driver.
func (d *Driver) Mounts(_ context.Context, l snapshot.Layer) ([]spec.Mount, error) {
	var opts []string
	if u, g := l.Labels[label.SnapshotUIDMap], l.Labels[label.SnapshotGIDMap]; d.facts.remap && u != "" && g != "" {
		opts = append(opts, "uidmap="+u, "gidmap="+g)
	}
	rw := "rw"
	if l.Kind == snapshot.View {
		rw = "ro"
	}
	switch {
	case len(l.Parents) == 0:
		return bind(d.fs(l.ID), append(opts, rw, "rbind")), nil
	case l.Kind == snapshot.View && len(l.Parents) == 1:
		return bind(d.fs(l.Parents[0]), append(opts, rw, "rbind")), nil
	}
	opts = append(opts, d.facts.options...)
	if l.Kind == snapshot.Active {
		opts = append(opts, "workdir="+escape(d.work(l.ID)), "upperdir="+escape(d.fs(l.ID)))
	}
	lower := make([]string, len(l.Parents))
	for i, p := range l.Parents {
		lower[i] = escape(d.fs(p))
	}
	opts = append(opts, "lowerdir="+strings.Join(lower, ":"))
	return []spec.Mount{{Type: "overlay", Source: "overlay", Options: opts}}, nil
}

// escape hides in a path what separates layers and options.
func escape(path string) string { return separators.Replace(path) }

var separators = strings.NewReplacer(`\`, `\\`, ":", `\:`, ",", `\,`)

func bind(source string, opts []string) []spec.Mount {
	return []spec.Mount{{Type: "bind", Source: source, Options: opts}}
}

// Fill implements snapshot.Driver.
func (d *Driver) Fill(_ context.Context, l snapshot.Layer) (string, spec.Whiteout, bool) {
	if d.facts.userns {
		return d.fs(l.ID), spec.WhiteoutOverlayUser, true
	}
	return d.fs(l.ID), spec.WhiteoutOverlay, true
}

// Tree implements snapshot.Driver.
func (d *Driver) Tree(id uint64) (string, bool) { return d.fs(id), true }

// Seal implements snapshot.Driver. A layer that was made without parents and has
// some now gets its root's attributes from them.
func (d *Driver) Seal(ctx context.Context, l snapshot.Layer) (snapshot.Usage, error) {
	if _, err := os.Lstat(d.work(l.ID)); errors.Is(err, os.ErrNotExist) && len(l.Parents) > 0 {
		if err := d.dressRoot(l); err != nil {
			return snapshot.Usage{}, fmt.Errorf("seal overlay snapshot %d: %w", l.ID, err)
		}
	}
	return d.Usage(ctx, l)
}

// Usage implements snapshot.Driver.
func (d *Driver) Usage(ctx context.Context, l snapshot.Layer) (snapshot.Usage, error) {
	size, inodes, err := tree.Usage(ctx, d.fs(l.ID))
	if err != nil {
		return snapshot.Usage{}, fmt.Errorf("usage of overlay snapshot %d: %w", l.ID, err)
	}
	return snapshot.Usage{Size: size, Inodes: inodes}, nil
}

// Remove implements snapshot.Driver. The snapshot is gone at once, its files soon.
func (d *Driver) Remove(_ context.Context, id uint64) error {
	if err := d.dirs.Remove(id); err != nil {
		return fmt.Errorf("remove overlay snapshot %d: %w", id, err)
	}
	return nil
}

// List implements snapshot.Driver.
func (d *Driver) List(context.Context) ([]uint64, error) {
	ids, err := d.dirs.List()
	if err != nil {
		return nil, fmt.Errorf("list overlay snapshots: %w", err)
	}
	return ids, nil
}
