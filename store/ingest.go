package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/id"
	"github.com/berthd/berth/base/label"
	"github.com/berthd/berth/store/blob"
)

// ingestLife is how long an ingest that no lease holds may stay.
const ingestLife = 24 * time.Hour

// IngestStatus is what is known of one ingest.
type IngestStatus struct {
	Ref       string
	Offset    int64 // bytes there
	Total     int64 // bytes to come in all, 0 if not known
	Expected  digest.Digest
	StartedAt time.Time
	UpdatedAt time.Time
}

// Writer writes one ingest. It belongs to one goroutine; Close gives the ref free
// and keeps the bytes.
//
//	(none) ──Writer──> open ──Commit──> content
//	                    │  ^
//	                 Close  Writer (resumes)
//	                    v  │
//	                   kept ──Abort, expiry──> (none)
type Writer struct {
	v       Scoped
	in      *blob.Ingest // nil while a shared blob stands in for it
	id      string
	status  IngestStatus
	shared  int64 // size of the blob of another namespace, if that is what Commit takes
	replace bool  // write it although it is there
	locked  bool  // the ref is ours
	closed  bool
}

// WriterOptions name what is to be written.
type WriterOptions struct {
	Ref      string
	Total    int64         // 0: not known
	Expected digest.Digest // "": not known
	Replace  bool          // content that is there is written anew: it was found damaged
}

type ingestRow struct {
	id       string
	total    int64
	expected string
	started  int64
}

// Writer opens an ingest, new or left by an earlier writer. There is one writer
// at a time for a ref: a second one gets Unavailable and may try again. Content
// that the namespace has already is AlreadyExists, and comes under the lease.
func (v Scoped) Writer(ctx context.Context, o WriterOptions) (*Writer, error) {
	if o.Ref == "" {
		return nil, errs.New(errs.InvalidArgument, "ingest: ref must not be empty")
	}
	if o.Expected != "" {
		if err := o.Expected.Validate(); err != nil {
			return nil, errs.New(errs.InvalidArgument, "ingest %q: expected digest %.80q: %v", o.Ref, o.Expected, err)
		}
	}
	w := &Writer{v: v, replace: o.Replace, status: IngestStatus{Ref: o.Ref, Total: o.Total, Expected: o.Expected, StartedAt: time.Now().UTC()}}
	if err := v.s.lockRef(w); err != nil {
		return nil, err
	}
	if err := w.open(ctx); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

func (v Scoped) refKey(ref string) string { return v.scope.Namespace + "\x00" + ref }

func (s *Store) lockRef(w *Writer) error {
	s.ingests.Lock()
	defer s.ingests.Unlock()
	key := w.v.refKey(w.status.Ref)
	if since, locked := s.ingests.open[key]; locked {
		return errs.New(errs.Unavailable, "ref %q locked for %s (since %s)", w.status.Ref, time.Since(since).Round(time.Millisecond), since.Format(time.RFC3339))
	}
	s.ingests.open[key] = time.Now().UTC()
	w.locked = true
	return nil
}

func (w *Writer) open(ctx context.Context) error {
	st := &w.status
	there, err := Set(ctx, w.v, func(tx *Tx) (bool, error) {
		if there, err := w.holdPresent(tx, st.Expected); err != nil || there {
			return there, err
		}
		if err := w.share(tx); err != nil || w.shared > 0 {
			return false, err
		}
		return false, w.row(tx)
	})
	if there {
		return errs.New(errs.AlreadyExists, "content %s: already exists", st.Expected)
	}
	if err != nil || w.shared > 0 {
		return err
	}
	alg := digest.Canonical
	if st.Expected != "" {
		alg = st.Expected.Algorithm()
	}
	if w.in, err = w.v.s.blobs.Ingest(w.id, alg); err != nil {
		return fmt.Errorf("ingest %q: %w", st.Ref, err)
	}
	return nil
}

// holdPresent reports whether the namespace has the content, and then puts it
// under the lease at the same moment.
func (w *Writer) holdPresent(tx *Tx, dg digest.Digest) (bool, error) {
	if dg == "" || w.replace {
		return false, nil
	}
	there, err := tx.present(dg)
	if err != nil || !there {
		return false, err
	}
	return true, tx.hold(ResourceContent, dg.String())
}

// share looks whether another namespace has what is expected: then nothing has to
// be written, and a Commit links it.
func (w *Writer) share(tx *Tx) error {
	if w.status.Expected == "" || w.replace || tx.store.cfg.Isolated {
		return nil
	}
	size, _, err := tx.elsewhere(w.status.Expected)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if onDisk, lost := tx.store.blobs.Size(w.status.Expected); lost != nil || onDisk != size {
		return nil
	}
	w.shared = size
	return err
}

// row finds the ingest's row or makes it, before there is a file.
func (w *Writer) row(tx *Tx) error {
	st := &w.status
	old, err := one(tx, func(s scanner) (r ingestRow, err error) { return r, s.Scan(&r.id, &r.total, &r.expected, &r.started) },
		`SELECT id, total, expected, started FROM ingest WHERE ns = ? AND ref = ?`, tx.scope.Namespace, st.Ref)
	switch {
	case err == nil && (st.Total == 0 || old.total == 0 || st.Total == old.total):
		w.id, st.StartedAt = old.id, at(old.started)
		if st.Total == 0 {
			st.Total = old.total
		}
		return tx.exec(`UPDATE ingest SET total = ?, expected = ? WHERE ns = ? AND ref = ?`, st.Total, st.Expected.String(), tx.scope.Namespace, st.Ref)
	case err == nil: // another size: what is there belongs to something else
		if err := tx.exec(`DELETE FROM ingest WHERE ns = ? AND ref = ?`, tx.scope.Namespace, st.Ref); err != nil {
			return err
		}
	case !errors.Is(err, sql.ErrNoRows):
		return err
	}
	var expires int64
	if tx.scope.Lease == "" {
		expires = tx.now.Add(ingestLife).UnixNano()
	}
	w.id, st.StartedAt, tx.made = id.New(16), tx.now, true
	tx.touch(node{nodeIngest, tx.scope.Namespace, st.Ref})
	if err := tx.exec(`INSERT INTO ingest (ns, ref, id, total, expected, started, expires) VALUES (?, ?, ?, ?, ?, ?, ?)`, tx.scope.Namespace, st.Ref, w.id,
		st.Total, st.Expected.String(), tx.now.UnixNano(), expires); err != nil {
		return err
	}
	return tx.hold(ResourceIngest, st.Ref)
}

// Write appends. Content that turned out to be in another namespace is written
// all the same if the client insists on sending it.
func (w *Writer) Write(p []byte) (int, error) {
	if w.closed {
		return 0, errs.New(errs.FailedPrecondition, "ingest %q: the writer is closed", w.status.Ref)
	}
	if w.shared > 0 {
		return 0, errs.New(errs.OutOfRange, "ingest %q: all %d bytes are there already", w.status.Ref, w.shared)
	}
	n, err := w.in.Write(p)
	w.status.UpdatedAt = time.Now().UTC()
	return n, err
}

// Status is what is known now. It may be called by other goroutines' Status
// requests through Store.Ingests only.
func (w *Writer) Status() IngestStatus {
	st := w.status
	if st.Offset = w.Offset(); st.UpdatedAt.IsZero() {
		st.UpdatedAt = st.StartedAt
	}
	return st
}

// Offset is how many bytes are there.
func (w *Writer) Offset() int64 {
	if w.in == nil {
		return w.shared
	}
	return w.in.Offset()
}

// Reader reads the bytes that were there when it was called; nil if there are
// none. It may be read while Write goes on.
func (w *Writer) Reader() io.Reader {
	if w.in == nil || w.in.Offset() == 0 {
		return nil
	}
	return w.in.Reader()
}

// Digest is that of the bytes so far.
func (w *Writer) Digest() digest.Digest {
	if w.in == nil {
		return w.status.Expected
	}
	return w.in.Digest()
}

// Reset drops the bytes so far; one that stood for another namespace's blob
// becomes a real ingest, to be written from the start.
func (w *Writer) Reset(ctx context.Context) error {
	if w.in != nil {
		return w.in.Reset(w.in.Algorithm())
	}
	if err := w.v.Update(ctx, w.row); err != nil {
		return err
	}
	var err error
	w.in, err = w.v.s.blobs.Ingest(w.id, w.status.Expected.Algorithm())
	w.shared = 0
	return err
}

// Expect tells what the content shall be, once that is known: AlreadyExists if
// the namespace has it (and the lease holds it from now on); the ingest is dropped
// then.
func (w *Writer) Expect(ctx context.Context, total int64, dg digest.Digest) error {
	if total > 0 {
		w.status.Total = total
	}
	if dg == "" || dg == w.status.Expected {
		return nil
	}
	if err := dg.Validate(); err != nil {
		return errs.New(errs.InvalidArgument, "ingest %q: expected digest %.80q: %v", w.status.Ref, dg, err)
	}
	there, err := Set(ctx, w.v, func(tx *Tx) (bool, error) { return w.holdPresent(tx, dg) })
	if err != nil {
		return err
	}
	if there {
		return errors.Join(errs.New(errs.AlreadyExists, "content %s: already exists", dg), w.drop(ctx))
	}
	w.status.Expected = dg
	return nil
}

// drop removes the ingest with its bytes and gives the ref free.
func (w *Writer) drop(ctx context.Context) error {
	err := w.v.Update(ctx, func(tx *Tx) error {
		return tx.exec(`DELETE FROM ingest WHERE ns = ? AND ref = ?`, tx.scope.Namespace, w.status.Ref)
	})
	if err == nil && w.in != nil {
		err = errors.Join(w.in.Close(), w.v.s.blobs.RemoveIngest(w.id))
	}
	return errors.Join(err, w.release())
}

// CommitOptions say what a commit must find and how it is kept.
type CommitOptions struct {
	Size     int64         // 0: not checked
	Expected digest.Digest // "": not checked
	Labels   map[string]string
	Later    bool // the caller flushes before it promises (Store.Flush)
}

// Commit makes content of the ingest. Wrong size or digest is FailedPrecondition,
// and the bytes stay as they are; content that is there by now is AlreadyExists,
// and the ingest is dropped.
func (w *Writer) Commit(ctx context.Context, o CommitOptions) error {
	st := w.status
	if err := label.CheckAll(o.Labels); err != nil {
		return err
	}
	if o.Size > 0 && o.Size != w.Offset() {
		return errs.New(errs.FailedPrecondition, "commit %q: unexpected size %d, expected %d", st.Ref, w.Offset(), o.Size)
	}
	if w.in != nil && o.Expected != "" {
		if err := w.in.Rehash(o.Expected.Algorithm()); err != nil {
			return err
		}
	}
	dg := w.Digest()
	if o.Expected != "" && o.Expected != dg {
		return errs.New(errs.FailedPrecondition, "commit %q: unexpected digest %s, expected %s", st.Ref, dg, o.Expected)
	}
	if w.in == nil {
		if _, err := w.v.ShareContent(ctx, dg, o.Labels); err != nil {
			return err
		}
		return w.Close()
	}
	return w.seal(ctx, dg, o)
}

func (w *Writer) seal(ctx context.Context, dg digest.Digest, o CommitOptions) error {
	unlock, err := w.v.s.digests.Lock(ctx, dg.String())
	if err != nil {
		return err
	}
	defer unlock()
	there, known, err := w.v.lookup(ctx, dg)
	if err != nil {
		return err
	}
	there = there && !w.replace
	// A file that is replaced may be promised already: then the new one is
	// made durable at once.
	flush := !o.Later || known
	size := w.in.Offset()
	if !there {
		if _, err := w.in.Seal(flush); err != nil {
			return fmt.Errorf("commit %q: %w", w.status.Ref, err)
		}
	}
	err = w.v.Update(ctx, func(tx *Tx) error {
		if err := tx.exec(`DELETE FROM ingest WHERE ns = ? AND ref = ?`, tx.scope.Namespace, w.status.Ref); err != nil {
			return err
		}
		// A collection may have taken the row since; the file is there as long
		// as this digest is locked.
		if still, err := tx.HasContent(dg); err != nil || still && there {
			return errors.Join(err, tx.hold(ResourceContent, dg.String()))
		}
		c := Content{Digest: dg, Size: size, Labels: label.Update(nil, o.Labels), CreatedAt: tx.now, UpdatedAt: tx.now}
		return tx.putContent(c, flush && !there)
	})
	if err == nil && there {
		err = errors.Join(errs.New(errs.AlreadyExists, "content %s: already exists", dg), w.in.Close(), w.v.s.blobs.RemoveIngest(w.id))
	}
	return errors.Join(err, w.release())
}

// lookup reports whether the namespace has the blob, and whether any row at all
// speaks of its file.
func (v Scoped) lookup(ctx context.Context, dg digest.Digest) (there, known bool, err error) {
	err = v.View(ctx, func(tx *Tx) (err error) {
		if there, err = tx.present(dg); err != nil {
			return err
		}
		known, err = tx.exists(`SELECT 1 FROM content WHERE digest = ?`, dg.String())
		return err
	})
	return there, known, err
}

func (w *Writer) release() error {
	s := w.v.s
	s.ingests.Lock()
	defer s.ingests.Unlock()
	if w.locked {
		delete(s.ingests.open, w.v.refKey(w.status.Ref))
	}
	w.locked, w.closed = false, true
	return nil
}

// Close gives the ref free; the bytes stay for a later writer. Closing twice is
// allowed.
func (w *Writer) Close() error {
	if w.closed {
		return nil
	}
	var err error
	if w.in != nil {
		err = w.in.Close()
	}
	return errors.Join(err, w.release())
}

// Abort drops an ingest and its bytes. One that is being written is Unavailable.
func (v Scoped) Abort(ctx context.Context, ref string) error {
	v.s.ingests.Lock()
	_, open := v.s.ingests.open[v.refKey(ref)]
	v.s.ingests.Unlock()
	if open {
		return errs.New(errs.Unavailable, "abort %q: it is being written", ref)
	}
	var file string
	err := v.Update(ctx, func(tx *Tx) (err error) {
		file, err = one(tx, scanOne[string], `SELECT id FROM ingest WHERE ns = ? AND ref = ?`, tx.scope.Namespace, ref)
		if err != nil {
			return missing(err, "ingest %q", ref)
		}
		return tx.exec(`DELETE FROM ingest WHERE ns = ? AND ref = ?`, tx.scope.Namespace, ref)
	})
	if err != nil {
		return err
	}
	return v.s.blobs.RemoveIngest(file)
}

// Ingests lists the ingests that are there, with how far they are.
func (v Scoped) Ingests(ctx context.Context) ([]IngestStatus, error) {
	type row struct {
		IngestStatus
		id string
	}
	rows, err := Get(ctx, v, func(tx *Tx) ([]row, error) {
		return many(tx, func(s scanner) (r row, err error) {
			var started int64
			err = s.Scan(&r.Ref, &r.Total, &r.Expected, &started, &r.id)
			r.StartedAt = at(started)
			return r, err
		}, `SELECT ref, total, expected, started, id FROM ingest WHERE ns = ? ORDER BY ref`, tx.scope.Namespace)
	})
	if err != nil {
		return nil, err
	}
	out := make([]IngestStatus, 0, len(rows))
	for _, r := range rows {
		r.Offset, r.UpdatedAt = v.s.blobs.IngestSize(r.id)
		if r.UpdatedAt.IsZero() {
			r.UpdatedAt = r.StartedAt
		}
		out = append(out, r.IngestStatus)
	}
	return out, nil
}
