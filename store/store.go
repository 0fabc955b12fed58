// Package store is what berth remembers: namespaces, images, content, snapshots,
// leases, containers and sandboxes, as rows of one SQLite database, with the
// blobs and the snapshot directories behind them. It is the only package that
// opens the database. It owns the files below its root; it starts no goroutine
// and never decides when to collect garbage.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/keylock"
	"github.com/berthd/berth/base/tally"
	"github.com/berthd/berth/store/blob"
	"github.com/berthd/berth/store/snapshot"
)

// Config is what a store is made of.
type Config struct {
	Root     string                     // directory of the database and the blobs
	Drivers  map[string]snapshot.Driver // by the name that clients use
	BootID   string                     // names the running kernel; see boot.go
	Isolated bool                       // blobs of other namespaces must be provided again
	Publish  func([]Event)              // gets the events of each commit, in order; must not block
	Log      *slog.Logger
}

func (c Config) log() *slog.Logger {
	if c.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return c.Log
}

// Store is one open database with what it speaks of.
type Store struct {
	cfg     Config
	lock    *os.File
	read    *sql.DB
	write   *writer
	blobs   *blob.Dir
	drivers map[string]snapshot.Driver

	digests   keylock.Map // one commit or removal of a blob at a time
	snapshots keylock.Map // one change of a snapshot's directory at a time

	ingests struct {
		sync.Mutex
		open map[string]time.Time // by namespace and ref, since when
	}
	touched    touchSet
	deferred   touchSet // since Defer
	collecting sync.Mutex
	tallies    Tallies
}

// Tallies count what the store does.
type Tallies struct {
	Transactions tally.Counter
	Commits      tally.Times // each may hold several transactions
}

// Tallies are the store's own numbers.
func (s *Store) Tallies() *Tallies { return &s.tallies }

// Scope says for whom a transaction is: the namespace whose things it sees, and
// the lease (or none) that holds what it makes.
type Scope struct {
	Namespace string
	Lease     string
}

// Scoped is the store as one namespace and lease see it.
type Scoped struct {
	s     *Store
	scope Scope
}

// In returns the store in a scope.
func (s *Store) In(scope Scope) Scoped { return Scoped{s, scope} }

// Namespace is the namespace of the scope.
func (v Scoped) Namespace() string { return v.scope.Namespace }

// Lease is the lease of the scope, or "".
func (v Scoped) Lease() string { return v.scope.Lease }

// Open opens or makes the database, tears down what an earlier process left
// half done, and checks the format. A second daemon on the same root is refused.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if err := os.MkdirAll(cfg.Root, 0o700); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	lock, err := lockRoot(cfg.Root)
	if err != nil {
		return nil, err
	}
	blobs, err := blob.Open(filepath.Join(cfg.Root, "content"))
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	if cfg.Publish == nil {
		cfg.Publish = func([]Event) {}
	}
	s := &Store{cfg: cfg, lock: lock, blobs: blobs, drivers: cfg.Drivers}
	s.ingests.open = map[string]time.Time{}
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open the database in %s: %w", cfg.Root, err), s.Close())
	}
	if err := s.tidy(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("tidy the store after the last run: %w", err), s.Close())
	}
	return s, nil
}

// pragmas: WAL with synchronous=NORMAL keeps the database whole through power
// loss without a flush per commit; a commit that promises something raises it to
// FULL for itself (write.go).
func dsn(path string, readOnly bool) string {
	q := url.Values{}
	for _, p := range []string{"journal_mode(WAL)", "synchronous(NORMAL)", "busy_timeout(10000)", "foreign_keys(ON)", "cache_size(-1024)", "temp_store(MEMORY)"} {
		q.Add("_pragma", p)
	}
	if readOnly {
		q.Add("_pragma", "query_only(ON)")
	}
	return "file:" + path + "?" + q.Encode()
}

const readers = 4

func (s *Store) connect(ctx context.Context, path string) error {
	w, err := sql.Open("sqlite", dsn(path, false))
	if err != nil {
		return err
	}
	w.SetMaxOpenConns(1)
	s.write = &writer{db: w, store: s}
	if s.write.conn, err = w.Conn(ctx); err != nil {
		return err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	if s.read, err = sql.Open("sqlite", dsn(path, true)); err != nil {
		return err
	}
	s.read.SetMaxOpenConns(readers)
	s.read.SetMaxIdleConns(readers)
	return nil
}

// Close ends the store; open writers become useless, nothing is lost.
func (s *Store) Close() error { return errors.Join(s.disconnect(), s.lock.Close()) }

func (s *Store) disconnect() error {
	var all []error
	if s.read != nil {
		all = append(all, s.read.Close())
	}
	if s.write != nil {
		all = append(all, s.write.close())
	}
	s.read, s.write = nil, nil
	return errors.Join(all...)
}

// Blobs gives read access to the files of content.
func (s *Store) Blobs() *blob.Dir { return s.blobs }

// Driver returns a snapshot driver by name; an unknown one is InvalidArgument.
func (s *Store) Driver(name string) (snapshot.Driver, error) {
	if d := s.drivers[name]; d != nil {
		return d, nil
	}
	var have []string
	for n := range s.drivers {
		have = append(have, n)
	}
	return nil, errs.New(errs.InvalidArgument, "snapshotter %q is not loaded (there are: %s)", name, strings.Join(have, ", "))
}

// kindOf turns SQLite's result codes into kinds.
func kindOf(err error) error {
	var se *sqlite.Error
	if !errors.As(err, &se) {
		return err
	}
	switch se.Code() & 0xff {
	case sqlite3.SQLITE_FULL:
		return errs.New(errs.ResourceExhausted, "the database cannot grow, the disk is full: %w", err)
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return errs.New(errs.Unavailable, "the database is locked by another program: %w", err)
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return errs.New(errs.DataLoss, "the database is damaged: %w", err)
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR:
		return errs.New(errs.Unavailable, "the database cannot be written: %w", err)
	}
	return err
}
