package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/store/blob"
)

// tidy brings rows and files together after whatever ended the last run: rows that
// nobody can read are set aside; rows in
// state creating, and rows whose bytes another boot's page cache held, are taken
// away; then the files that no row speaks of.
func (s *Store) tidy(ctx context.Context) error {
	err := s.In(Scope{}).Update(ctx, func(tx *Tx) error {
		if err := tx.setBadAside(); err != nil {
			return err
		}
		if err := tx.dropLostContent(); err != nil {
			return err
		}
		return tx.dropLostSnapshots()
	})
	if err != nil {
		return err
	}
	if err := s.trashUnknown(ctx); err != nil {
		return err
	}
	return nil
}

func (tx *Tx) dropLostContent() error {
	type key struct{ ns, dg string }
	lost, err := many(tx, func(s scanner) (k key, err error) { return k, s.Scan(&k.ns, &k.dg) },
		`SELECT ns, digest FROM content WHERE boot IS NOT NULL AND boot <> ?`, tx.store.cfg.BootID)
	if err != nil {
		return err
	}
	for _, k := range lost {
		if err := tx.removeContent(k.ns, k.dg); err != nil {
			return err
		}
	}
	return nil
}

// dropLostSnapshots removes half-made snapshots and lost layers with all that
// stands on them: a layer above a lost one is worth nothing.
func (tx *Tx) dropLostSnapshots() error {
	type key struct {
		id uint64
		sn string
	}
	lost, err := many(tx, func(s scanner) (k key, err error) { return k, s.Scan(&k.id, &k.sn) },
		`WITH RECURSIVE gone (id) AS (
			SELECT id FROM snapshot WHERE state = 'creating' OR (boot IS NOT NULL AND boot <> ?)
			UNION SELECT s.id FROM snapshot s JOIN gone ON s.parent = gone.id)
		SELECT s.id, s.snapshotter FROM snapshot s JOIN gone ON s.id = gone.id ORDER BY s.id DESC`, tx.store.cfg.BootID)
	if err != nil {
		return err
	}
	// A rebased layer can have a parent with a higher id, so order is not enough.
	if err := tx.exec(`PRAGMA defer_foreign_keys = ON`); err != nil {
		return err
	}
	for _, k := range lost {
		if err := tx.removeSnapshot(k.sn, k.id); err != nil {
			return err
		}
	}
	return nil
}

// trashUnknown marks for removal what is on disk and in no row.
func (s *Store) trashUnknown(ctx context.Context) error {
	blobs, err := s.blobs.List()
	if err != nil {
		return err
	}
	used := inUse()
	dirs := map[string][]uint64{}
	for name, d := range s.drivers {
		if dirs[name], err = d.List(ctx); err != nil {
			return fmt.Errorf("list snapshots of %s: %w", name, err)
		}
	}
	return s.In(Scope{}).Update(ctx, func(tx *Tx) error {
		known, err := set(tx, scanOne[string], `SELECT DISTINCT digest FROM content`)
		if err != nil {
			return err
		}
		for _, dg := range blobs {
			if !known[dg.String()] {
				if err := tx.exec(`INSERT OR IGNORE INTO trash (type, resource) VALUES ('blob', ?)`, dg.String()); err != nil {
					return err
				}
			}
		}
		if err := tx.exec(`INSERT INTO sqlite_sequence (name, seq) SELECT 'snapshot', 0 WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'snapshot')`); err != nil {
			return err
		}
		for name, ids := range dirs {
			rows, err := set(tx, scanOne[uint64], `SELECT id FROM snapshot WHERE snapshotter = ?`, name)
			if err != nil {
				return err
			}
			for _, id := range ids {
				// Rows that power loss took back may have used ids that the
				// counter no longer knows: never give one out again.
				if err := tx.exec(`UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = 'snapshot'`, id); err != nil {
					return err
				}
				if !rows[id] && !used(s.drivers[name].Root(), id) {
					if err := tx.exec(`INSERT OR IGNORE INTO trash (type, resource) VALUES ('snapshot', ?)`, lockKey(name, id)); err != nil {
						return err
					}
				}
			}
		}
		return nil
	})
}

// inUse finds out which directories of snapshots are mounted: what a container runs on
// is no trash, even if its row was lost. Nothing is read before it is asked.
func inUse() func(root string, id uint64) bool {
	var once sync.Once
	var mounts string
	return func(root string, id uint64) bool {
		once.Do(func() {
			data, _ := os.ReadFile("/proc/self/mountinfo") // without it nothing is known to be in use
			mounts = string(data)
		})
		return strings.Contains(mounts, filepath.Join(root, "snapshots", strconv.FormatUint(id, 10))+"/")
	}
}

func set[T comparable](tx *Tx, scan func(scanner) (T, error), query string, args ...any) (map[T]bool, error) {
	all, err := many(tx, scan, query, args...)
	out := make(map[T]bool, len(all))
	for _, v := range all {
		out[v] = true
	}
	return out, err
}

// EmptyTrash removes the files that no row wants any more. What cannot be removed
// now stays for the next time; the errors are joined.
func (s *Store) EmptyTrash(ctx context.Context) error {
	type item struct{ typ, res string }
	items, err := Get(ctx, s.In(Scope{}), func(tx *Tx) ([]item, error) {
		return many(tx, func(r scanner) (i item, err error) { return i, r.Scan(&i.typ, &i.res) }, `SELECT type, resource FROM trash`)
	})
	if err != nil {
		return err
	}
	if len(items) > 0 {
		// The rows must be gone for good before the files are.
		if err := s.In(Scope{}).Promise(ctx, func(*Tx) error { return nil }); err != nil {
			return err
		}
	}
	var all []error
	for _, i := range items {
		if ctx.Err() != nil {
			return errors.Join(append(all, context.Cause(ctx))...)
		}
		if i.typ == "blob" {
			all = append(all, s.emptyBlobTrash(ctx, digest.Digest(i.res)))
			continue
		}
		sn, num, _ := strings.Cut(i.res, "/")
		id, err := strconv.ParseUint(num, 10, 64)
		if err != nil {
			all = append(all, errs.New(errs.Internal, "trash holds %q", i.res))
			continue
		}
		all = append(all, s.emptySnapshotTrash(ctx, sn, id))
	}
	return errors.Join(append(all, s.sweepIngests(ctx))...)
}

func (s *Store) emptyBlobTrash(ctx context.Context, dg digest.Digest) error {
	unlock, err := s.digests.Lock(ctx, dg.String())
	if err != nil {
		return err
	}
	defer unlock()
	still, err := Get(ctx, s.In(Scope{}), func(tx *Tx) (bool, error) {
		return tx.exists(`SELECT 1 FROM trash WHERE type = 'blob' AND resource = ? AND NOT EXISTS (SELECT 1 FROM content WHERE digest = resource)`, dg.String())
	})
	if err != nil || !still {
		return err
	}
	// What is no digest names no file: it came out of a damaged database.
	if err := s.blobs.Remove(dg); err != nil && dg.Validate() == nil {
		return fmt.Errorf("remove blob %s: %w", dg, err)
	}
	return s.In(Scope{}).Update(ctx, func(tx *Tx) error {
		return tx.exec(`DELETE FROM trash WHERE type = 'blob' AND resource = ?`, dg.String())
	})
}

func (s *Store) emptySnapshotTrash(ctx context.Context, sn string, id uint64) error {
	d := s.drivers[sn]
	if d == nil {
		return nil // its driver is not loaded: another start may know it
	}
	unlock, err := s.snapshots.Lock(ctx, lockKey(sn, id))
	if err != nil {
		return err
	}
	defer unlock()
	if err := d.Remove(ctx, id); err != nil {
		return fmt.Errorf("remove snapshot directory %s/%d: %w", sn, id, err)
	}
	return s.In(Scope{}).Update(ctx, func(tx *Tx) error {
		return tx.exec(`DELETE FROM trash WHERE type = 'snapshot' AND resource = ?`, lockKey(sn, id))
	})
}

// sweepIngests removes ingest files whose row is gone.
func (s *Store) sweepIngests(ctx context.Context) error {
	files, err := s.blobs.Ingests()
	if err != nil || len(files) == 0 {
		return err
	}
	// Read the rows after the files: a file is made after its row.
	known, err := Get(ctx, s.In(Scope{}), func(tx *Tx) (map[string]bool, error) { return set(tx, scanOne[string], `SELECT id FROM ingest`) })
	if err != nil {
		return err
	}
	files = slices.DeleteFunc(files, func(id string) bool { return known[id] })
	var all []error
	for _, id := range files {
		all = append(all, s.blobs.RemoveIngest(id))
	}
	return errors.Join(all...)
}

// Flush makes every blob and layer that was committed without a flush durable,
// and says so in their rows. It is what a pull does once, before it promises.
func (s *Store) Flush(ctx context.Context) error {
	type key struct{ ns, dg string }
	var blobs []key
	var layers []uint64
	roots := map[string]bool{s.cfg.Root: true}
	err := s.In(Scope{}).View(ctx, func(tx *Tx) (err error) {
		if blobs, err = many(tx, func(r scanner) (k key, err error) { return k, r.Scan(&k.ns, &k.dg) }, `SELECT ns, digest FROM content WHERE boot IS NOT NULL`); err != nil {
			return err
		}
		layers, err = many(tx, scanOne[uint64], `SELECT id FROM snapshot WHERE boot IS NOT NULL AND state = 'ready'`)
		return err
	})
	if err != nil || len(blobs)+len(layers) == 0 {
		return err
	}
	for _, d := range s.drivers {
		if other, err := otherFS(s.cfg.Root, d.Root()); err == nil && other {
			roots[d.Root()] = true
		}
	}
	for dir := range roots {
		if err := blob.SyncFS(dir); err != nil {
			return err
		}
	}
	return s.In(Scope{}).Update(ctx, func(tx *Tx) error {
		for _, k := range blobs {
			if err := tx.exec(`UPDATE content SET boot = NULL WHERE ns = ? AND digest = ?`, k.ns, k.dg); err != nil {
				return err
			}
		}
		for _, id := range layers {
			if err := tx.exec(`UPDATE snapshot SET boot = NULL WHERE id = ?`, id); err != nil {
				return err
			}
		}
		return nil
	})
}
