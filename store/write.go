package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/failpoint"
	"github.com/berthd/berth/base/id"
)

// writer groups transactions: those that wait while one is committed are run one
// after another, each in a savepoint, and committed together. Whoever finds
// nobody at work leads; when its batch is through, it hands over to the first
// that waits. So there is no goroutine, and no commit waits for more than two.
//
//	caller A ── lead ─ run A ─ commit ─┐hand over
//	caller B ── wait ──────────────────┴ lead ─ run B, C ─ commit
//	caller C ── wait ────────────────────────────────────────┘ woken
type writer struct {
	db    *sql.DB
	conn  *sql.Conn
	store *Store
	full  bool // synchronous=FULL is set on conn

	mu    sync.Mutex
	busy  bool
	queue []*job
	stmts map[string]*sql.Stmt // prepared on conn; used by the leader only
}

type job struct {
	ctx   context.Context
	scope Scope
	fn    func(*Tx) error
	full  bool
	tx    *Tx
	err   error
	ready chan struct{} // closed when done or when it must lead
	lead  bool
}

// Update runs fn in a transaction. It is atomic and, once committed, survives the
// death of the process; power loss may take it back until a later Promise or
// checkpoint. fn must do nothing but use tx: others wait for it.
func (v Scoped) Update(ctx context.Context, fn func(*Tx) error) error {
	return v.s.write.do(&job{ctx: ctx, scope: v.scope, fn: fn})
}

// Promise is Update that is durable when it returns: it, and everything that was
// committed before it, survives power loss.
func (v Scoped) Promise(ctx context.Context, fn func(*Tx) error) error {
	return v.s.write.do(&job{ctx: ctx, scope: v.scope, fn: fn, full: true})
}

func (w *writer) do(j *job) error {
	if err := context.Cause(j.ctx); err != nil {
		return err
	}
	j.ready = make(chan struct{})
	w.mu.Lock()
	w.queue = append(w.queue, j)
	if w.busy {
		w.mu.Unlock()
		<-j.ready
		if !j.lead {
			return j.err
		}
		w.mu.Lock()
	}
	w.busy = true
	batch := w.queue
	w.queue = nil
	w.mu.Unlock()

	w.commit(batch)

	w.mu.Lock()
	defer w.mu.Unlock()
	for _, b := range batch {
		if b != j {
			close(b.ready)
		}
	}
	if len(w.queue) > 0 {
		next := w.queue[0]
		next.lead = true
		close(next.ready)
	} else {
		w.busy = false
	}
	return j.err
}

// commit runs a batch in one transaction and publishes its events.
func (w *writer) commit(batch []*job) {
	ctx := context.WithoutCancel(batch[0].ctx)
	defer w.store.tallies.Commits.Since(time.Now())
	w.store.tallies.Transactions.Add(uint64(len(batch)))
	err := w.begin(ctx, batch)
	if err == nil {
		for _, j := range batch {
			if j.err = w.run(ctx, j); errors.Is(j.err, errBroken) {
				err = j.err
				break
			}
		}
		failpoint.Here("store.commit.before")
		if err == nil && w.full {
			// A commit that changes nothing would flush nothing, and leave what was
			// committed before it to chance.
			err = w.exec(ctx, `INSERT INTO meta (key, value) VALUES ('promises', '1') ON CONFLICT (key) DO UPDATE SET value = value + 1`)
		}
		if err == nil {
			err = w.exec(ctx, "COMMIT")
		}
		failpoint.Here("store.commit.after")
	}
	if err != nil {
		_ = w.exec(ctx, "ROLLBACK") // says "no transaction" if the engine already did
		for _, j := range batch {
			j.err = kindOf(fmt.Errorf("commit: %w", err))
		}
		return
	}
	var events []Event
	for _, j := range batch {
		if j.err == nil {
			events = append(events, j.tx.events...)
		}
	}
	if len(events) > 0 {
		w.store.cfg.Publish(events)
	}
}

var errBroken = errors.New("the transaction is broken")

func (w *writer) begin(ctx context.Context, batch []*job) error {
	full := false
	for _, j := range batch {
		full = full || j.full
	}
	if full != w.full {
		mode := "NORMAL"
		if full {
			mode = "FULL"
		}
		if err := w.exec(ctx, "PRAGMA synchronous="+mode); err != nil {
			return err
		}
		w.full = full
	}
	return w.exec(ctx, "BEGIN IMMEDIATE")
}

// run executes one job inside a savepoint, so that its failure takes back only
// what it did itself.
func (w *writer) run(ctx context.Context, j *job) error {
	if err := context.Cause(j.ctx); err != nil {
		return err
	}
	if err := w.exec(ctx, "SAVEPOINT j"); err != nil {
		return errors.Join(errBroken, err)
	}
	j.tx = &Tx{ctx: ctx, q: w, store: w.store, scope: j.scope, now: time.Now().UTC(), writes: true}
	err := call(j.fn, j.tx)
	if err == nil {
		err = j.tx.noteNamespace()
		// Before the commit: a sweep in the same batch must see it.
		w.store.touched.add(j.tx.touched)
		w.store.deferred.add(j.tx.touched)
	}
	if err != nil {
		if back := w.exec(ctx, "ROLLBACK TO j"); back != nil {
			return errors.Join(errBroken, back)
		}
		err = kindOf(err)
	}
	if rel := w.exec(ctx, "RELEASE j"); rel != nil {
		return errors.Join(errBroken, rel)
	}
	return err
}

// call keeps a panic in one caller's function from taking the whole daemon down.
func call(fn func(*Tx) error, tx *Tx) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = errs.New(errs.Internal, "panic in a transaction: %v\n%s", p, debug.Stack())
		}
	}()
	return fn(tx)
}

func (w *writer) exec(ctx context.Context, query string, args ...any) error {
	st, err := w.prepare(ctx, query)
	if err != nil {
		return err
	}
	_, err = st.ExecContext(ctx, args...)
	return err
}

// prepare keeps statements on the one connection: parsing costs more than most of
// them do. The texts are constants of this package, so the map is bounded.
func (w *writer) prepare(ctx context.Context, query string) (*sql.Stmt, error) {
	if st := w.stmts[query]; st != nil {
		return st, nil
	}
	st, err := w.conn.PrepareContext(ctx, query)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", query, err)
	}
	if w.stmts == nil {
		w.stmts = map[string]*sql.Stmt{}
	}
	w.stmts[query] = st
	return st, nil
}

func (w *writer) close() error {
	var all []error
	for _, st := range w.stmts {
		all = append(all, st.Close())
	}
	if w.conn != nil {
		all = append(all, w.conn.Close())
	}
	return errors.Join(append(all, w.db.Close())...)
}

// View runs fn on an unchanging picture of the database. Writers go on meanwhile.
func (v Scoped) View(ctx context.Context, fn func(*Tx) error) error {
	rtx, err := v.s.read.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return kindOf(err)
	}
	defer func() { _ = rtx.Rollback() }() // a read has nothing to lose
	return kindOf(fn(&Tx{ctx: ctx, q: reader{rtx}, store: v.s, scope: v.scope, now: time.Now().UTC()}))
}

// Get is View for one result.
func Get[T any](ctx context.Context, v Scoped, fn func(*Tx) (T, error)) (T, error) {
	var out T
	err := v.View(ctx, func(tx *Tx) (err error) { out, err = fn(tx); return err })
	return out, err
}

// Set is Update for one result.
func Set[T any](ctx context.Context, v Scoped, fn func(*Tx) (T, error)) (T, error) {
	var out T
	err := v.Update(ctx, func(tx *Tx) (err error) { out, err = fn(tx); return err })
	return out, err
}

type reader struct{ tx *sql.Tx }

func (r reader) exec(context.Context, string, ...any) error {
	return errs.New(errs.Internal, "a write in a read transaction")
}

func (r reader) query(ctx context.Context, q string, args ...any) (*sql.Rows, error) {
	return r.tx.QueryContext(ctx, q, args...)
}

func (w *writer) query(ctx context.Context, q string, args ...any) (*sql.Rows, error) {
	st, err := w.prepare(ctx, q)
	if err != nil {
		return nil, err
	}
	return st.QueryContext(ctx, args...)
}

// noteNamespace makes the namespace's row at the first write in it.
func (tx *Tx) noteNamespace() error {
	ns := tx.scope.Namespace
	if ns == "" || !tx.made {
		return nil
	}
	if err := id.Check("namespace", ns); err != nil {
		return err
	}
	return tx.exec(`INSERT OR IGNORE INTO namespace (name, created) VALUES (?, ?)`, ns, tx.now.UnixNano())
}

// PromiseBytes is Promise for rows that point to blobs and layers: whatever of
// them is not yet on the disk is flushed first.
func (v Scoped) PromiseBytes(ctx context.Context, fn func(*Tx) error) error {
	if err := v.s.Flush(ctx); err != nil {
		return err
	}
	return v.Promise(ctx, fn)
}
