package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"time"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/failpoint"
	"github.com/berthd/berth/base/label"
	"github.com/berthd/berth/base/spec"
	"github.com/berthd/berth/store/snapshot"
)

func lockKey(sn string, id uint64) string { return sn + "/" + strconv.FormatUint(id, 10) }

// MakeSnapshot makes an active snapshot or a view and returns how to mount it.
// Steps: the row in state creating, the driver, the row ready.
func (v Scoped) MakeSnapshot(ctx context.Context, s Snapshot) ([]spec.Mount, error) {
	d, err := v.s.Driver(s.Snapshotter)
	if err != nil {
		return nil, err
	}
	var layer snapshot.Layer
	err = v.Update(ctx, func(tx *Tx) error {
		if s, err = tx.reserveSnapshot(s); err != nil {
			return err
		}
		layer, err = tx.layer(s)
		return err
	})
	if err != nil {
		return nil, err
	}
	failpoint.Here("snapshot.reserved")
	mounts, err := v.driveSnapshot(ctx, d, s, layer)
	if err != nil {
		return nil, errors.Join(err, v.undoSnapshot(ctx, s))
	}
	return mounts, nil
}

// driveSnapshot has the driver make what the row announces.
func (v Scoped) driveSnapshot(ctx context.Context, d snapshot.Driver, s Snapshot, l snapshot.Layer) ([]spec.Mount, error) {
	unlock, err := v.s.snapshots.Lock(ctx, lockKey(s.Snapshotter, s.ID))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := d.Make(ctx, l); err != nil {
		return nil, fmt.Errorf("make snapshot %q: %w", s.Name, err)
	}
	failpoint.Here("snapshot.made")
	mounts, err := d.Mounts(ctx, l)
	if err != nil {
		return nil, fmt.Errorf("mounts of snapshot %q: %w", s.Name, err)
	}
	return mounts, v.Update(ctx, func(tx *Tx) error {
		if s.Kind == snapshot.Active {
			tx.emit("/snapshot/prepare", SnapshotPrepare{s.Name, s.Parent, s.Snapshotter})
		}
		if err := tx.exec(`UPDATE snapshot SET state = 'ready' WHERE id = ?`, s.ID); err != nil {
			return err
		}
		return tx.hold(ResourceSnapshot+s.Snapshotter, s.Name)
	})
}

// undoSnapshot takes back a snapshot that could not be made. What it cannot do
// now, the row in state creating makes the next start do.
func (v Scoped) undoSnapshot(ctx context.Context, s Snapshot) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	err := v.Update(ctx, func(tx *Tx) error { return tx.removeSnapshot(s.Snapshotter, s.ID) })
	return errors.Join(err, v.s.emptySnapshotTrash(ctx, s.Snapshotter, s.ID))
}

// found reads a snapshot with its driver and layer.
func (v Scoped) found(ctx context.Context, sn, name string) (s Snapshot, l snapshot.Layer, d snapshot.Driver, err error) {
	if d, err = v.s.Driver(sn); err != nil {
		return s, l, d, err
	}
	err = v.View(ctx, func(tx *Tx) error {
		if s, err = tx.Snapshot(sn, name); err != nil {
			return err
		}
		l, err = tx.layer(s)
		return err
	})
	return s, l, d, err
}

// SnapshotMounts says how to mount an active snapshot or a view.
func (v Scoped) SnapshotMounts(ctx context.Context, sn, name string) ([]spec.Mount, error) {
	s, l, d, err := v.found(ctx, sn, name)
	if err != nil {
		return nil, err
	}
	if s.Kind == snapshot.Committed {
		return nil, errs.New(errs.FailedPrecondition, "snapshot %q is committed and cannot be mounted; make a view of it", name)
	}
	return d.Mounts(ctx, l)
}

// SnapshotUsage measures one snapshot, parents not counted.
func (v Scoped) SnapshotUsage(ctx context.Context, sn, name string) (snapshot.Usage, error) {
	s, l, d, err := v.found(ctx, sn, name)
	if err != nil || s.Kind == snapshot.Committed {
		return snapshot.Usage{Size: s.Size, Inodes: s.Inodes}, err
	}
	return d.Usage(ctx, l)
}

// Fill returns the directory into which a layer may be written without mounting
// it; ok is false where the driver has none.
func (v Scoped) Fill(ctx context.Context, sn, name string) (dir string, style spec.Whiteout, ok bool, err error) {
	s, l, d, err := v.found(ctx, sn, name)
	if err != nil {
		return "", style, false, err
	}
	if s.Kind != snapshot.Active {
		return "", style, false, errs.New(errs.FailedPrecondition, "snapshot %q is not active", name)
	}
	dir, style, ok = d.Fill(ctx, l)
	return dir, style, ok, nil
}

// Trees returns the directories of a committed snapshot and its parents, nearest
// first; ok is false where the driver does not keep layers as directories.
func (v Scoped) Trees(ctx context.Context, sn, name string) (dirs []string, ok bool, err error) {
	if name == "" {
		return nil, true, nil
	}
	s, l, d, err := v.found(ctx, sn, name)
	if err != nil {
		return nil, false, err
	}
	for _, id := range append([]uint64{s.ID}, l.Parents...) {
		dir, ok := d.Tree(id)
		if !ok {
			return nil, false, nil
		}
		dirs = append(dirs, dir)
	}
	return dirs, true, nil
}

// CommitSnapshot seals an active snapshot under a new name with its final labels.
// parent may be given only for one that was made without, by a driver that can
// rebase.
func (v Scoped) CommitSnapshot(ctx context.Context, sn, key, name, parent string, labels map[string]string) error {
	// Sealing cannot be taken back: look before.
	if err := v.View(ctx, func(tx *Tx) error { return tx.freeName(sn, name) }); err != nil {
		return err
	}
	return v.commit(ctx, sn, key, name, parent, labels, (*Tx).freeName)
}

// LostSnapshot reports whether the directory of a committed snapshot is gone, as
// far as its driver lets one see that.
func (v Scoped) LostSnapshot(ctx context.Context, sn, name string) (bool, error) {
	s, _, d, err := v.found(ctx, sn, name)
	if err != nil {
		return false, err
	}
	dir, ok := d.Tree(s.ID)
	if !ok || s.Kind != snapshot.Committed {
		return false, nil
	}
	_, err = os.Lstat(dir)
	return errors.Is(err, fs.ErrNotExist), errs.Ignore(err, fs.ErrNotExist)
}

// ReplaceSnapshot is CommitSnapshot in the place of a lost one: what stood on that
// stands on the new one.
func (v Scoped) ReplaceSnapshot(ctx context.Context, sn, key, name, parent string) error {
	return v.commit(ctx, sn, key, name, parent, nil, func(tx *Tx, sn, name string) error { return tx.takePlace(sn, key, name) })
}

// takePlace lets key have the name and the children of another snapshot, and
// removes that.
func (tx *Tx) takePlace(sn, key, name string) error {
	old, err := tx.Snapshot(sn, name)
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	s, err := tx.Snapshot(sn, key)
	if err != nil {
		return err
	}
	if err := tx.exec(`UPDATE snapshot SET parent = ? WHERE parent = ?`, s.ID, old.ID); err != nil {
		return err
	}
	return tx.removeSnapshot(sn, old.ID)
}

func (v Scoped) commit(ctx context.Context, sn, key, name, parent string, labels map[string]string, place func(tx *Tx, sn, name string) error) error {
	s, l, d, err := v.found(ctx, sn, key)
	if err != nil {
		return err
	}
	if s.Kind != snapshot.Active {
		return errs.New(errs.FailedPrecondition, "snapshot %q is %s, only an active one can be committed", key, s.Kind)
	}
	if err := label.CheckAll(labels); err != nil {
		return err
	}
	unlock, err := v.s.snapshots.Lock(ctx, lockKey(sn, s.ID))
	if err != nil {
		return err
	}
	defer unlock()
	if parent != "" && parent != s.Parent {
		if l.Parents, err = v.rebase(ctx, d, s, parent); err != nil {
			return err
		}
	}
	l.Kind = snapshot.Committed
	usage, err := d.Seal(ctx, l)
	if err != nil {
		return fmt.Errorf("commit snapshot %q: %w", key, err)
	}
	failpoint.Here("snapshot.sealed")
	return v.Update(ctx, func(tx *Tx) error {
		if err := place(tx, sn, name); err != nil {
			return err
		}
		return tx.commitSnapshot(s, name, l.Parents, usage, labels)
	})
}

func (v Scoped) rebase(ctx context.Context, d snapshot.Driver, s Snapshot, parent string) ([]uint64, error) {
	can := false
	for _, c := range d.Capabilities() {
		can = can || c == snapshot.CapRebase
	}
	if s.Parent != "" || !can {
		return nil, errs.New(errs.InvalidArgument, "snapshot %q cannot get the parent %q at commit", s.Name, parent)
	}
	return Get(ctx, v, func(tx *Tx) ([]uint64, error) {
		p, err := tx.Snapshot(s.Snapshotter, parent)
		if err != nil {
			return nil, errs.New(errs.NotFound, "parent snapshot %q of %q: not found", parent, s.Name)
		}
		if p.Kind != snapshot.Committed {
			return nil, errs.New(errs.InvalidArgument, "parent snapshot %q of %q is not committed", parent, s.Name)
		}
		up, err := tx.chain(p.ID)
		return append([]uint64{p.ID}, up...), err
	})
}

func (tx *Tx) commitSnapshot(s Snapshot, name string, parents []uint64, u snapshot.Usage, labels map[string]string) error {
	sn, key := s.Snapshotter, s.Name
	var parent any
	if len(parents) > 0 {
		if there, err := tx.exists(`SELECT 1 FROM snapshot WHERE id = ?`, parents[0]); err != nil || !there {
			return errors.Join(err, errs.New(errs.NotFound, "parent of snapshot %q: not found", key))
		}
		parent = parents[0]
	}
	s.Name, s.Labels = name, label.Update(nil, labels)
	tx.touchSnapshot(s)
	tx.emit("/snapshot/commit", SnapshotCommit{key, name, sn})
	if err := tx.exec(`UPDATE snapshot SET name = ?, kind = ?, parent = ?, labels = ?, updated = ?, size = ?, inodes = ?, boot = ? WHERE id = ?`, name,
		snapshot.Committed, parent, encode(s.Labels), tx.now.UnixNano(), u.Size, u.Inodes, tx.store.cfg.BootID, s.ID); err != nil {
		return err
	}
	if err := tx.exec(`DELETE FROM lease_resource WHERE ns = ? AND type = ? AND resource = ?`, tx.scope.Namespace, ResourceSnapshot+sn, key); err != nil {
		return err
	}
	return tx.hold(ResourceSnapshot+sn, name)
}
