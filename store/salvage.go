package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/berthd/berth/base/errs"
)

// Damage is what happened to a database that was found damaged: it was moved away as
// it was, and a new one was made from all of its rows that could be read.
type Damage struct {
	At    time.Time      `json:"at"`
	Error string         `json:"error"`
	Copy  string         `json:"copy"` // directory of the damaged files
	Kept  map[string]int `json:"kept"` // rows by table
	Cut   []string       `json:"cut"`  // tables of which rows may be missing
}

const metaDamage = "damage"

// dbFiles are the files of a SQLite database in WAL mode.
var dbFiles = []string{"berth.db", "berth.db-wal", "berth.db-shm"}

// open makes the database ready for use; one that is damaged is replaced by what can
// be read of it.
func (s *Store) open(ctx context.Context) error {
	err := s.openOnce(ctx)
	if !errs.Is(err, errs.DataLoss) {
		return err
	}
	if cerr := s.disconnect(); cerr != nil {
		s.cfg.log().Warn("close the damaged database", "error", cerr)
	}
	d := Damage{At: time.Now().UTC(), Error: err.Error(), Kept: map[string]int{}}
	d.Copy = filepath.Join(s.cfg.Root, "damaged-"+d.At.Format("20060102T150405.000"))
	s.cfg.log().Error("the database is damaged: a new one is made from what can be read of it", "error", err, "copy", d.Copy, "see", "berth doctor")
	if err := os.Mkdir(d.Copy, 0o700); err != nil {
		return err
	}
	for _, f := range dbFiles {
		if err := os.Rename(filepath.Join(s.cfg.Root, f), filepath.Join(d.Copy, f)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := s.openOnce(ctx); err != nil {
		return err
	}
	if err := s.refill(ctx, &d); err != nil {
		return fmt.Errorf("save rows of the damaged database: %w", err)
	}
	note, err := json.Marshal(d)
	if err != nil {
		return err
	}
	s.cfg.log().Error("the database is made anew", "kept", d.Kept, "incomplete", d.Cut)
	return s.In(Scope{}).Promise(ctx, func(tx *Tx) error {
		return tx.exec(`INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)`, metaDamage, string(note))
	})
}

// quickAbove is the size from which on indexes are not compared with their tables at
// each start, in bytes: that would take longer than a start may.
const quickAbove = 32 << 20

// openOnce connects, and looks for damage before anything is relied on.
func (s *Store) openOnce(ctx context.Context) error {
	path := filepath.Join(s.cfg.Root, dbFiles[0])
	if err := s.connect(ctx, path); err != nil {
		return kindOf(err)
	}
	check, first := `PRAGMA integrity_check(1)`, ""
	if info, err := os.Stat(path); err == nil && info.Size() > quickAbove {
		check = `PRAGMA quick_check(1)`
	}
	if err := s.write.conn.QueryRowContext(ctx, check).Scan(&first); err != nil {
		return kindOf(err)
	}
	if first != "ok" {
		return errs.New(errs.DataLoss, "the database is damaged: %s", first)
	}
	return s.migrate(ctx)
}

// refill copies rows out of the damaged files.
func (s *Store) refill(ctx context.Context, d *Damage) error {
	old, err := sql.Open("sqlite", "file:"+filepath.Join(d.Copy, dbFiles[0])+"?"+url.Values{"_pragma": {"busy_timeout(1000)", "cell_size_check(ON)"}}.Encode())
	if err != nil {
		return err
	}
	defer func() { _ = old.Close() }() // it was only read
	tables, err := s.tables(ctx)
	if err != nil {
		return err
	}
	// A snapshot's parent may come after its child, or never.
	if err := s.write.exec(ctx, `PRAGMA foreign_keys = OFF`); err != nil {
		return err
	}
	for _, t := range tables {
		n, whole := s.refillTable(ctx, old, t)
		if d.Kept[t] = n; !whole {
			d.Cut = append(d.Cut, t)
		}
	}
	orphans := func(tx *Tx) error {
		return tx.exec(`WITH RECURSIVE gone (id) AS (
			SELECT id FROM snapshot WHERE parent IS NOT NULL AND parent NOT IN (SELECT id FROM snapshot)
			UNION SELECT s.id FROM snapshot s JOIN gone ON s.parent = gone.id)
			DELETE FROM snapshot WHERE id IN (SELECT id FROM gone)`)
	}
	return errors.Join(s.In(Scope{}).Update(ctx, orphans), s.write.exec(ctx, `PRAGMA foreign_keys = ON`))
}

func (s *Store) tables(ctx context.Context) (out []string, err error) {
	err = s.In(Scope{}).View(ctx, func(tx *Tx) error {
		out, err = many(tx, scanOne[string], `SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'`)
		return err
	})
	return out, err
}

// refillTable reads a table from its beginning until it cannot, and then from its
// end. It returns how many rows came over and whether nothing stood in the way.
func (s *Store) refillTable(ctx context.Context, old *sql.DB, table string) (n int, whole bool) {
	columns, key := s.columns(ctx, table)
	if len(columns) == 0 {
		return 0, false
	}
	list := strings.Join(columns, ", ")
	whole = true
	for _, order := range []string{"", " ORDER BY " + strings.Join(key, " DESC, ") + " DESC"} {
		got, err := s.copyRows(ctx, old, table, list, len(columns), order)
		n += got
		if err == nil {
			return n, whole
		}
		whole = false
	}
	return n, false
}

// columns lists a table's columns and those of its primary key.
func (s *Store) columns(ctx context.Context, table string) (all, key []string) {
	err := s.In(Scope{}).View(ctx, func(tx *Tx) error {
		_, err := many(tx, func(s scanner) (struct{}, error) {
			var name string
			var pk int
			err := s.Scan(&name, &pk)
			if all = append(all, name); pk > 0 {
				key = append(key, name)
			}
			return struct{}{}, err
		}, `SELECT name, pk FROM pragma_table_info(?)`, table)
		return err
	})
	if err != nil {
		return nil, nil
	}
	return all, key
}

func (s *Store) copyRows(ctx context.Context, old *sql.DB, table, list string, width int, order string) (n int, err error) {
	rows, err := old.QueryContext(ctx, `SELECT `+list+` FROM `+table+order)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	values, to := make([]any, width), make([]any, width)
	for i := range values {
		to[i] = &values[i]
	}
	insert := `INSERT OR IGNORE INTO ` + table + ` (` + list + `) VALUES (?` + strings.Repeat(", ?", width-1) + `)`
	for rows.Next() {
		if err := rows.Scan(to...); err != nil {
			return n, err
		}
		// A row at a time: one that breaks a rule of its table is left out alone.
		if err := s.In(Scope{}).Update(ctx, func(tx *Tx) error { return tx.exec(insert, values...) }); err == nil {
			n++
		}
	}
	return n, rows.Err()
}

// Damage says whether the database was made anew from a damaged one.
func (s *Store) Damage(ctx context.Context) (*Damage, error) {
	text, err := Get(ctx, s.In(Scope{}), func(tx *Tx) ([]string, error) {
		return many(tx, scanOne[string], `SELECT value FROM meta WHERE key = ?`, metaDamage)
	})
	if err != nil || len(text) == 0 {
		return nil, err
	}
	var d Damage
	return &d, json.Unmarshal([]byte(text[0]), &d)
}
