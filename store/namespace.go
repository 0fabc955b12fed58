package store

import (
	"database/sql"
	"errors"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/id"
	"github.com/berthd/berth/base/label"
)

// Namespace is a row of its table.
type Namespace struct {
	Name   string
	Labels map[string]string
}

func scanNamespace(s scanner) (n Namespace, err error) {
	return n, s.Scan(&n.Name, (*labels)(&n.Labels))
}

// NamespaceRow returns one namespace. One that nobody made is returned with no
// labels and no error: containerd's API promises that.
func (tx *Tx) NamespaceRow(name string) (Namespace, error) {
	n, err := one(tx, scanNamespace, `SELECT name, labels FROM namespace WHERE name = ?`, name)
	if errors.Is(err, sql.ErrNoRows) {
		return Namespace{Name: name}, nil
	}
	return n, err
}

// Namespaces lists all of them by name.
func (tx *Tx) Namespaces() ([]Namespace, error) {
	return many(tx, scanNamespace, `SELECT name, labels FROM namespace ORDER BY name`)
}

// CreateNamespace makes a namespace that is not there yet.
func (tx *Tx) CreateNamespace(n Namespace) error {
	if err := id.Check("namespace", n.Name); err != nil {
		return err
	}
	if err := label.CheckAll(n.Labels); err != nil {
		return err
	}
	there, err := tx.exists(`SELECT 1 FROM namespace WHERE name = ?`, n.Name)
	if err != nil {
		return err
	}
	if there {
		return errs.New(errs.AlreadyExists, "namespace %q: already exists", n.Name)
	}
	tx.emitIn(n.Name, "/namespaces/create", NamespaceCreate(n))
	return tx.exec(`INSERT INTO namespace (name, labels, created) VALUES (?, ?, ?)`, n.Name, encode(n.Labels), tx.now.UnixNano())
}

// UpdateNamespace changes labels: all of them, or those that paths name as
// "labels.KEY".
func (tx *Tx) UpdateNamespace(in Namespace, paths ...string) (Namespace, error) {
	n, err := one(tx, scanNamespace, `SELECT name, labels FROM namespace WHERE name = ?`, in.Name)
	if err != nil {
		return n, missing(err, "namespace %q", in.Name)
	}
	if len(paths) == 0 {
		n.Labels = in.Labels
	}
	for _, p := range paths {
		field, key := maskField(p)
		if field != "labels" {
			return n, badMask("a namespace", p)
		}
		n.Labels = maskMap(n.Labels, in.Labels, key)
	}
	if err := label.CheckAll(n.Labels); err != nil {
		return n, err
	}
	n.Labels = label.Update(nil, n.Labels)
	tx.emitIn(n.Name, "/namespaces/update", NamespaceUpdate(n))
	return n, tx.exec(`UPDATE namespace SET labels = ? WHERE name = ?`, encode(n.Labels), n.Name)
}

// DeleteNamespace removes an empty namespace. Images, content, snapshots and
// containers keep it; leases, ingests and sandboxes go with it.
func (tx *Tx) DeleteNamespace(name string) error {
	if there, err := tx.exists(`SELECT 1 FROM namespace WHERE name = ?`, name); err != nil || !there {
		return errors.Join(err, missing(sql.ErrNoRows, "namespace %q", name))
	}
	for _, t := range []struct{ what, query string }{
		{"images", `SELECT 1 FROM image WHERE ns = ? LIMIT 1`},
		{"blobs", `SELECT 1 FROM content WHERE ns = ? LIMIT 1`},
		{"containers", `SELECT 1 FROM container WHERE ns = ? LIMIT 1`},
		{"snapshots", `SELECT 1 FROM snapshot WHERE ns = ? LIMIT 1`},
	} {
		full, err := tx.exists(t.query, name)
		if err != nil {
			return err
		}
		if full {
			return errs.New(errs.FailedPrecondition, "namespace %q must be empty, but it still has %s", name, t.what)
		}
	}
	for _, q := range []string{
		`DELETE FROM ingest WHERE ns = ?`, `DELETE FROM sandbox WHERE ns = ?`,
		`DELETE FROM lease_resource WHERE ns = ?`, `DELETE FROM lease WHERE ns = ?`,
		`DELETE FROM namespace WHERE name = ?`,
	} {
		if err := tx.exec(q, name); err != nil {
			return err
		}
	}
	tx.emitIn(name, "/namespaces/delete", NamespaceDelete{name})
	return nil
}
