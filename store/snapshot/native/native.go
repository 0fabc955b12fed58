// Package native keeps each snapshot as a full copy of its parent, shared by
// reflink where the file system can, and bound as it is. It works everywhere,
// where overlay does not. It owns the directory that it is given:
//
//	<root>/snapshots/<id>      a whole tree; empty for a view of a parent
package native

import (
	"context"
	"fmt"
	"os"

	"github.com/berthd/berth/base/spec"
	"github.com/berthd/berth/host/tree"
	"github.com/berthd/berth/store/snapshot"
	"github.com/berthd/berth/store/snapshot/dirs"
)

// Driver is the native driver.
type Driver struct{ dirs dirs.Dirs }

// New opens or makes the driver's directory.
func New(root string) (*Driver, error) {
	d, err := dirs.Open(root)
	if err != nil {
		return nil, fmt.Errorf("native snapshots: %w", err)
	}
	return &Driver{d}, nil
}

// Root implements snapshot.Driver.
func (d *Driver) Root() string { return d.dirs.Root() }

// Capabilities implements snapshot.Driver: none.
func (d *Driver) Capabilities() []snapshot.Capability { return nil }

// Make implements snapshot.Driver.
func (d *Driver) Make(ctx context.Context, l snapshot.Layer) error {
	if err := d.Remove(ctx, l.ID); err != nil {
		return err
	}
	if err := d.make(ctx, l); err != nil {
		return fmt.Errorf("make native snapshot %d: %w", l.ID, err)
	}
	return nil
}

func (d *Driver) make(ctx context.Context, l snapshot.Layer) error {
	if err := os.Mkdir(d.dirs.Path(l.ID), 0o755); err != nil {
		return err
	}
	if err := os.Chmod(d.dirs.Path(l.ID), 0o755); err != nil { // whatever the umask
		return err
	}
	if l.Kind == snapshot.View || len(l.Parents) == 0 {
		return nil
	}
	return tree.Copy(ctx, d.dirs.Path(l.ID), d.dirs.Path(l.Parents[0]))
}

// Mounts implements snapshot.Driver.
func (d *Driver) Mounts(_ context.Context, l snapshot.Layer) ([]spec.Mount, error) {
	m := spec.Mount{Type: "bind", Source: d.dirs.Path(l.ID), Options: []string{"rbind", "rw"}}
	if l.Kind == snapshot.View {
		m.Options[1] = "ro"
		if len(l.Parents) > 0 {
			m.Source = d.dirs.Path(l.Parents[0])
		}
	}
	return []spec.Mount{m}, nil
}

// Fill implements snapshot.Driver.
func (d *Driver) Fill(_ context.Context, l snapshot.Layer) (string, spec.Whiteout, bool) {
	return d.dirs.Path(l.ID), spec.WhiteoutRemove, true
}

// Tree implements snapshot.Driver: a snapshot's own files are not told apart.
func (d *Driver) Tree(uint64) (string, bool) { return "", false }

// Seal implements snapshot.Driver.
func (d *Driver) Seal(ctx context.Context, l snapshot.Layer) (snapshot.Usage, error) {
	return d.Usage(ctx, l)
}

// Usage implements snapshot.Driver.
func (d *Driver) Usage(ctx context.Context, l snapshot.Layer) (snapshot.Usage, error) {
	size, inodes, err := tree.Usage(ctx, d.dirs.Path(l.ID))
	if err != nil {
		return snapshot.Usage{}, fmt.Errorf("usage of native snapshot %d: %w", l.ID, err)
	}
	return snapshot.Usage{Size: size, Inodes: inodes}, nil
}

// Remove implements snapshot.Driver.
func (d *Driver) Remove(_ context.Context, id uint64) error {
	if err := d.dirs.Remove(id); err != nil {
		return fmt.Errorf("remove native snapshot %d: %w", id, err)
	}
	return nil
}

// List implements snapshot.Driver.
func (d *Driver) List(context.Context) ([]uint64, error) {
	ids, err := d.dirs.List()
	if err != nil {
		return nil, fmt.Errorf("list native snapshots: %w", err)
	}
	return ids, nil
}
