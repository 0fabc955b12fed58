package store

import (
	"strings"
	"time"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/filter"
	"github.com/berthd/berth/base/label"
	"github.com/berthd/berth/store/snapshot"
)

// Snapshot is a name for a directory that a driver keeps.
//
//	         Prepare          Commit
//	(none) ──────────> active ──────> committed   may be a parent
//	         View
//	(none) ──────────> view
//
// Behind each arrow stands state 'creating' until the driver has done its part.
type Snapshot struct {
	ID          uint64 // of the driver's directory
	Snapshotter string
	Name        string // the key while it is active, the name once committed
	Parent      string // "" at the bottom
	Kind        snapshot.Kind
	Labels      map[string]string
	CreatedAt   time.Time
	UpdatedAt   time.Time
	Size        int64 // bytes of it alone; known once committed
	Inodes      int64
}

const snapshotSelect = `SELECT s.id, s.snapshotter, s.name, coalesce(p.name, ''), s.kind, s.labels, s.created, s.updated, s.size, s.inodes
	FROM snapshot s LEFT JOIN snapshot p ON p.id = s.parent WHERE s.state = 'ready' AND s.ns = ?`

func scanSnapshot(r scanner) (s Snapshot, err error) {
	var created, updated int64
	err = r.Scan(&s.ID, &s.Snapshotter, &s.Name, &s.Parent, &s.Kind, (*labels)(&s.Labels), &created, &updated, &s.Size, &s.Inodes)
	s.CreatedAt, s.UpdatedAt = at(created), at(updated)
	return s, err
}

// Fields serves filters.
func (s Snapshot) Fields(path []string) (string, bool) {
	switch path[0] {
	case "kind":
		return s.Kind.String(), true
	case "name":
		return s.Name, true
	case "parent":
		return s.Parent, s.Parent != ""
	case "labels":
		return filter.Labels(s.Labels, path[1:])
	}
	return "", false
}

// Snapshot returns one snapshot.
func (tx *Tx) Snapshot(sn, name string) (Snapshot, error) {
	s, err := one(tx, scanSnapshot, snapshotSelect+` AND s.snapshotter = ? AND s.name = ?`, tx.scope.Namespace, sn, name)
	return s, missing(err, "snapshot %q", name)
}

// Snapshots lists those of one driver that match, oldest first.
func (tx *Tx) Snapshots(sn string, filters ...string) ([]Snapshot, error) {
	f, err := filter.Parse(filters...)
	if err != nil {
		return nil, err
	}
	all, err := many(tx, scanSnapshot, snapshotSelect+` AND s.snapshotter = ? ORDER BY s.id`, tx.scope.Namespace, sn)
	return keep(all, f), err
}

// UpdateSnapshot changes the labels that paths name, or all of them.
func (tx *Tx) UpdateSnapshot(in Snapshot, paths ...string) (Snapshot, error) {
	s, err := tx.Snapshot(in.Snapshotter, in.Name)
	if err != nil {
		return s, err
	}
	if len(paths) == 0 {
		s.Labels = in.Labels
	}
	for _, p := range paths {
		field, key := maskField(p)
		if field != "labels" {
			return s, badMask("a snapshot", p)
		}
		s.Labels = maskMap(s.Labels, in.Labels, key)
	}
	if err := label.CheckAll(s.Labels); err != nil {
		return s, err
	}
	s.Labels, s.UpdatedAt = label.Update(nil, s.Labels), tx.now
	tx.touchSnapshot(s)
	return s, tx.exec(`UPDATE snapshot SET labels = ?, updated = ? WHERE id = ?`, encode(s.Labels), tx.now.UnixNano(), s.ID)
}

// chain gives the ids of a snapshot's parents, nearest first.
func (tx *Tx) chain(id uint64) ([]uint64, error) {
	ids, err := many(tx, scanOne[uint64], `WITH RECURSIVE up (id, parent, depth) AS (
			SELECT id, parent, 0 FROM snapshot WHERE id = ?
			UNION ALL SELECT s.id, s.parent, up.depth + 1 FROM snapshot s JOIN up ON s.id = up.parent)
		SELECT id FROM up ORDER BY depth`, id)
	if err != nil || len(ids) == 0 {
		return nil, err
	}
	return ids[1:], nil
}

// layer tells the driver's view of a snapshot.
func (tx *Tx) layer(s Snapshot) (snapshot.Layer, error) {
	parents, err := tx.chain(s.ID)
	return snapshot.Layer{ID: s.ID, Kind: s.Kind, Parents: parents, Labels: driverLabels(s.Labels)}, err
}

// driverLabels are the ones that drivers get to see.
func driverLabels(all map[string]string) map[string]string {
	var out map[string]string
	for k, v := range all {
		if strings.HasPrefix(k, label.SnapshotPrefix) || k == label.SnapshotRef {
			if out == nil {
				out = map[string]string{}
			}
			out[k] = v
		}
	}
	return out
}

// reserveSnapshot writes the intent: the name is taken, and the driver has not
// begun.
func (tx *Tx) reserveSnapshot(s Snapshot) (Snapshot, error) {
	if s.Name == "" {
		return s, errs.New(errs.InvalidArgument, "snapshot key must not be empty")
	}
	if err := label.CheckAll(s.Labels); err != nil {
		return s, err
	}
	if target := s.Labels[label.SnapshotRef]; target != "" {
		if _, err := tx.Snapshot(s.Snapshotter, target); err == nil {
			return s, errs.New(errs.AlreadyExists, "snapshot %q, the target of %q: already exists", target, s.Name)
		}
	}
	if err := tx.freeName(s.Snapshotter, s.Name); err != nil {
		return s, err
	}
	var parent any
	if s.Parent != "" {
		p, err := tx.Snapshot(s.Snapshotter, s.Parent)
		if err != nil {
			return s, errs.New(errs.NotFound, "parent snapshot %q of %q: not found", s.Parent, s.Name)
		}
		if p.Kind != snapshot.Committed {
			return s, errs.New(errs.InvalidArgument, "parent snapshot %q of %q is not committed", s.Parent, s.Name)
		}
		parent = p.ID
	}
	s.CreatedAt, s.UpdatedAt, tx.made = tx.now, tx.now, true
	s.Labels = label.Update(nil, s.Labels)
	tx.touchSnapshot(s)
	id, err := one(tx, scanOne[uint64], `INSERT INTO snapshot (ns, snapshotter, name, parent, kind, state, labels, created, updated)
		VALUES (?, ?, ?, ?, ?, 'creating', ?, ?, ?) RETURNING id`, tx.scope.Namespace, s.Snapshotter, s.Name, parent, s.Kind, encode(s.Labels),
		tx.now.UnixNano(), tx.now.UnixNano())
	s.ID = id
	return s, err
}

func (tx *Tx) freeName(sn, name string) error {
	taken, err := tx.exists(`SELECT 1 FROM snapshot WHERE ns = ? AND snapshotter = ? AND name = ?`, tx.scope.Namespace, sn, name)
	if err == nil && taken {
		err = errs.New(errs.AlreadyExists, "snapshot %q: already exists", name)
	}
	return err
}

// children reports whether anything stands on a snapshot.
func (tx *Tx) children(id uint64) (bool, error) {
	return tx.exists(`SELECT 1 FROM snapshot WHERE parent = ? LIMIT 1`, id)
}

// RemoveSnapshot takes a snapshot without children away; its directory goes at
// the next sweep.
func (tx *Tx) RemoveSnapshot(sn, name string) error {
	s, err := tx.Snapshot(sn, name)
	if err != nil {
		return err
	}
	busy, err := tx.children(s.ID)
	if err != nil {
		return err
	}
	if busy {
		return errs.New(errs.FailedPrecondition, "cannot remove snapshot %q: other snapshots have it as parent", name)
	}
	tx.emit("/snapshot/remove", SnapshotRemove{name, sn})
	return tx.removeSnapshot(sn, s.ID)
}

func (tx *Tx) removeSnapshot(sn string, id uint64) error {
	if err := tx.exec(`INSERT OR IGNORE INTO trash (type, resource) VALUES ('snapshot', ? || '/' || ?)`, sn, id); err != nil {
		return err
	}
	return tx.exec(`DELETE FROM snapshot WHERE id = ?`, id)
}
