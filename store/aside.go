package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/berthd/berth/base/errs"
)

// Aside is a row that could not be understood. It is out of the way of everything
// else, kept as it was, and reported: one bad row is no reason not to start.
type Aside struct {
	Table     string    `json:"table"`
	Namespace string    `json:"namespace"`
	ID        string    `json:"id"`
	Reason    string    `json:"reason"`
	At        time.Time `json:"at"`
	Row       string    `json:"row"` // its columns, as a JSON object; blobs in base64
}

// asideSchema is no step of the format: older programs do not mind the table.
const asideSchema = `CREATE TABLE IF NOT EXISTS aside (
	tbl    TEXT NOT NULL,
	ns     TEXT NOT NULL,
	id     TEXT NOT NULL,
	reason TEXT NOT NULL,
	at     INTEGER NOT NULL,
	row    TEXT NOT NULL,
	PRIMARY KEY (tbl, ns, id)
) STRICT, WITHOUT ROWID`

// Columns of JSON objects that this package decodes itself, and the column that names
// the row in its namespace.
var decoded = []struct {
	table, id string
	columns   []string
}{
	{"image", "name", []string{"annotations", "labels"}},
	{"content", "digest", []string{"labels"}},
	{"snapshot", "name", []string{"labels"}},
	{"container", "id", []string{"labels", "extensions"}},
	{"sandbox", "id", []string{"labels", "extensions"}},
	{"lease", "id", []string{"labels"}},
	{"task", "id", []string{"body"}},
}

// setBadAside looks through everything that is decoded when rows are read.
func (tx *Tx) setBadAside() error {
	if err := tx.exec(asideSchema); err != nil {
		return err
	}
	for _, d := range decoded {
		var bad []string
		for _, c := range d.columns {
			bad = append(bad, "NOT json_valid("+c+") OR json_type("+c+") <> 'object'")
		}
		type key struct{ ns, id string }
		rows, err := many(tx, func(s scanner) (k key, err error) { return k, s.Scan(&k.ns, &k.id) },
			`SELECT ns, `+d.id+` FROM `+d.table+` WHERE `+strings.Join(bad, " OR "))
		if err != nil {
			return err
		}
		for _, r := range rows {
			reason := "it cannot be decoded: " + strings.Join(d.columns, " or ") + " is no JSON object"
			if err := tx.SetAside(d.table, r.ns, r.id, reason); err != nil {
				return err
			}
		}
	}
	return nil
}

// SetAside moves a row that cannot be understood out of its table. Tables are named as
// in schema.go; what does not belong to a namespace cannot be set aside.
func (tx *Tx) SetAside(table, ns, id, reason string) error {
	column := "id"
	for _, d := range decoded {
		if d.table == table {
			column = d.id
		}
	}
	switch table {
	case "image", "content", "snapshot", "container", "sandbox", "lease", "task", "pod", "pod_container":
	default:
		return errs.New(errs.Internal, "rows of %q are not set aside", table)
	}
	row, err := tx.rowText(table, column, ns, id)
	if err != nil {
		return err
	}
	if table == "snapshot" { // what stands on it keeps its own directory, and no parent that anybody knows
		if err := tx.exec(`PRAGMA defer_foreign_keys = ON`); err != nil {
			return err
		}
		if err := tx.exec(`UPDATE snapshot SET parent = NULL WHERE parent = (SELECT id FROM snapshot WHERE ns = ? AND name = ?)`, ns, id); err != nil {
			return err
		}
	}
	tx.store.cfg.log().Error("a row is set aside", "table", table, "namespace", ns, "id", id, "reason", reason, "see", "berth doctor")
	return errors.Join(
		tx.exec(`INSERT OR REPLACE INTO aside (tbl, ns, id, reason, at, row) VALUES (?, ?, ?, ?, ?, ?)`, table, ns, id, reason, tx.now.UnixNano(), row),
		tx.exec(`DELETE FROM `+table+` WHERE ns = ? AND `+column+` = ?`, ns, id))
}

// rowText is a row as a JSON object.
func (tx *Tx) rowText(table, column, ns, id string) (out string, err error) {
	rows, err := tx.q.query(tx.ctx, `SELECT * FROM `+table+` WHERE ns = ? AND `+column+` = ?`, ns, id)
	if err != nil {
		return "", fmt.Errorf("database: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	names, err := rows.Columns()
	if err != nil {
		return "", err
	}
	if !rows.Next() {
		return "", errors.Join(errs.New(errs.NotFound, "%s %q: not found", table, id), rows.Err())
	}
	values, to := make([]any, len(names)), make([]any, len(names))
	for i := range values {
		to[i] = &values[i]
	}
	if err := rows.Scan(to...); err != nil {
		return "", err
	}
	m := map[string]any{}
	for i, n := range names {
		m[n] = values[i]
	}
	b, err := json.Marshal(m)
	return string(b), err
}

// Asides lists the rows that were set aside, newest last.
func (s *Store) Asides(ctx context.Context) ([]Aside, error) {
	return Get(ctx, s.In(Scope{}), func(tx *Tx) ([]Aside, error) {
		return many(tx, func(s scanner) (a Aside, err error) {
			var when int64
			err = s.Scan(&a.Table, &a.Namespace, &a.ID, &a.Reason, &when, &a.Row)
			a.At = at(when)
			return a, err
		}, `SELECT tbl, ns, id, reason, at, row FROM aside ORDER BY at, tbl, ns, id`)
	})
}

// ForgetAsides drops the rows that were set aside, and the note of a damage.
func (s *Store) ForgetAsides(ctx context.Context) error {
	return s.In(Scope{}).Update(ctx, func(tx *Tx) error {
		return errors.Join(tx.exec(`DELETE FROM aside`), tx.exec(`DELETE FROM meta WHERE key = ?`, metaDamage))
	})
}
