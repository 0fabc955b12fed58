package store

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/berthd/berth/base/failpoint"
)

// Collected says what a collection did.
type Collected struct {
	Content   int
	Snapshots int
	Images    int
	Leases    int
	Ingests   int
	Elapsed   time.Duration
}

// Total counts everything.
func (c Collected) Total() int { return c.Content + c.Snapshots + c.Images + c.Leases + c.Ingests }

// Collect finds what nothing holds and removes it: rows first, for good, then
// files. The mark reads an unchanging picture while writers go on; what they
// touch meanwhile is taken out of the garbage inside the removing transaction, so
// that nothing new, and nothing newly pointed to, is ever removed.
//
//	mark (read) ──> sweep (one write: garbage − reached from touched) ──> files
func (s *Store) Collect(ctx context.Context) (Collected, error) {
	return s.collect(ctx, func() []node { return nil })
}

// Defer says that a collection is wanted and may come later: CollectDeferred keeps
// all that is made, changed or pointed to from now on. So a client that puts
// content into the store just after a removal keeps it until the next one, as if
// the collection had been at once.
func (s *Store) Defer() { s.deferred.start() }

// CollectDeferred is Collect of what was garbage already at the last Defer.
func (s *Store) CollectDeferred(ctx context.Context) (Collected, error) {
	defer s.deferred.stopAt(s.deferred.count())
	return s.collect(ctx, s.deferred.list)
}

func (s *Store) collect(ctx context.Context, keep func() []node) (Collected, error) {
	s.collecting.Lock()
	defer s.collecting.Unlock()
	start := time.Now()
	all := s.In(Scope{})
	// In a transaction, because what one touched before this must be in the picture
	// that the mark reads: it is committed with this one or earlier.
	if err := all.Update(ctx, func(*Tx) error { s.touched.start(); return nil }); err != nil {
		return Collected{}, err
	}
	defer s.touched.stop()

	g, err := Get(ctx, all, func(tx *Tx) (*graph, error) { return tx.loadGraph() })
	if err != nil {
		return Collected{}, err
	}
	g.mark(g.roots)
	g.markFlat()
	var c Collected
	if len(g.garbage) > 0 {
		failpoint.Here("gc.marked")
		if err := all.Update(ctx, func(tx *Tx) (err error) { c, err = tx.sweep(g, keep()); return err }); err != nil {
			return Collected{}, err
		}
	}
	failpoint.Here("gc.swept")
	err = s.EmptyTrash(ctx)
	c.Elapsed = time.Since(start)
	return c, err
}

func (tx *Tx) sweep(g *graph, keep []node) (Collected, error) {
	var c Collected
	g.mark(keep)
	g.mark(tx.store.touched.list())
	if err := tx.exec(`PRAGMA defer_foreign_keys = ON`); err != nil {
		return c, err
	}
	for n := range g.garbage {
		if err := tx.sweepNode(n, &c); err != nil {
			return c, err
		}
	}
	return c, nil
}

func (tx *Tx) sweepNode(n node, c *Collected) error {
	switch n.typ {
	case nodeContent:
		c.Content++
		return tx.removeContent(n.ns, n.key)
	case nodeSnapshot:
		c.Snapshots++
		return tx.sweepSnapshot(n)
	case nodeImage:
		c.Images++
		tx.emitIn(n.ns, "/images/delete", ImageDelete{n.key})
		return tx.exec(`DELETE FROM image WHERE ns = ? AND name = ?`, n.ns, n.key)
	case nodeIngest:
		if tx.store.writing(n) {
			return nil
		}
		c.Ingests++
		return tx.exec(`DELETE FROM ingest WHERE ns = ? AND ref = ?`, n.ns, n.key)
	case nodeLease:
		c.Leases++
		return errors.Join(tx.exec(`DELETE FROM lease_resource WHERE ns = ? AND lease = ?`, n.ns, n.key),
			tx.exec(`DELETE FROM lease WHERE ns = ? AND id = ?`, n.ns, n.key))
	}
	return nil
}

func (tx *Tx) sweepSnapshot(n node) error {
	sn, name, _ := strings.Cut(n.key, "/")
	ids, err := many(tx, scanOne[uint64], `SELECT id FROM snapshot WHERE ns = ? AND snapshotter = ? AND name = ? AND state = 'ready'`, n.ns, sn, name)
	if err != nil || len(ids) == 0 {
		return err
	}
	tx.emitIn(n.ns, "/snapshot/remove", SnapshotRemove{name, sn})
	return tx.removeSnapshot(sn, ids[0])
}

// writing reports whether an ingest has a writer now.
func (s *Store) writing(n node) bool {
	s.ingests.Lock()
	defer s.ingests.Unlock()
	_, open := s.ingests.open[n.ns+"\x00"+n.key]
	return open
}
