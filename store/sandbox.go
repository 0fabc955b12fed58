package store

import (
	"time"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/filter"
	"github.com/berthd/berth/base/id"
	"github.com/berthd/berth/base/label"
)

// Sandbox is the metadata of what holds a group of containers together.
type Sandbox struct {
	ID         string
	Sandboxer  string // which controller makes it
	Runtime    string
	Options    Any
	Spec       Any
	Labels     map[string]string
	Extensions map[string]Any
	CreatedAt  time.Time
	UpdatedAt  time.Time
}

const sandboxColumns = `id, sandboxer, runtime, options_url, options, spec_url, spec, labels, extensions, created, updated`

func scanSandbox(s scanner) (b Sandbox, err error) {
	var created, updated int64
	var ext string
	if err = s.Scan(&b.ID, &b.Sandboxer, &b.Runtime, &b.Options.TypeURL, &b.Options.Value, &b.Spec.TypeURL, &b.Spec.Value, (*labels)(&b.Labels), &ext,
		&created, &updated); err != nil {
		return b, err
	}
	b.CreatedAt, b.UpdatedAt = at(created), at(updated)
	b.Extensions, err = decodeExtensions(ext)
	return b, err
}

// Fields serves filters.
func (b Sandbox) Fields(path []string) (string, bool) {
	switch path[0] {
	case "id":
		return b.ID, true
	case "labels":
		return filter.Labels(b.Labels, path[1:])
	}
	return "", false
}

func (b Sandbox) check() error {
	if err := id.Check("sandbox id", b.ID); err != nil {
		return err
	}
	return label.CheckAll(b.Labels)
}

// Sandbox returns one sandbox.
func (tx *Tx) Sandbox(sid string) (Sandbox, error) {
	b, err := one(tx, scanSandbox, `SELECT `+sandboxColumns+` FROM sandbox WHERE ns = ? AND id = ?`, tx.scope.Namespace, sid)
	return b, missing(err, "sandbox %q", sid)
}

// Sandboxes lists those that match, by id.
func (tx *Tx) Sandboxes(filters ...string) ([]Sandbox, error) {
	f, err := filter.Parse(filters...)
	if err != nil {
		return nil, err
	}
	all, err := many(tx, scanSandbox, `SELECT `+sandboxColumns+` FROM sandbox WHERE ns = ? ORDER BY id`, tx.scope.Namespace)
	return keep(all, f), err
}

// CreateSandbox stores a new sandbox.
func (tx *Tx) CreateSandbox(b Sandbox) (Sandbox, error) {
	if err := b.check(); err != nil {
		return b, err
	}
	there, err := tx.exists(`SELECT 1 FROM sandbox WHERE ns = ? AND id = ?`, tx.scope.Namespace, b.ID)
	if err != nil {
		return b, err
	}
	if there {
		return b, errs.New(errs.AlreadyExists, "sandbox %q: already exists", b.ID)
	}
	b.CreatedAt, b.UpdatedAt, tx.made = tx.now, tx.now, true
	b.Labels = label.Update(nil, b.Labels)
	tx.touchRefs(b.Labels)
	return b, tx.exec(`INSERT INTO sandbox (ns, `+sandboxColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`, tx.scope.Namespace, b.ID, b.Sandboxer, b.Runtime,
		b.Options.TypeURL, b.Options.Value, b.Spec.TypeURL, b.Spec.Value, encode(b.Labels), encodeExtensions(b.Extensions), tx.now.UnixNano(), tx.now.UnixNano())
}

// UpdateSandbox changes what paths name (labels, extensions, spec, runtime, each
// map also by .KEY), or all of these.
func (tx *Tx) UpdateSandbox(in Sandbox, paths ...string) (Sandbox, error) {
	b, err := tx.Sandbox(in.ID)
	if err != nil {
		return b, err
	}
	if len(paths) == 0 {
		paths = []string{"labels", "extensions", "spec", "runtime"}
	}
	for _, p := range paths {
		switch field, key := maskField(p); field {
		case "labels":
			b.Labels = maskMap(b.Labels, in.Labels, key)
		case "extensions":
			b.Extensions = maskMap(b.Extensions, in.Extensions, key)
		case "spec":
			b.Spec = in.Spec
		case "runtime":
			b.Runtime, b.Options = in.Runtime, in.Options
		default:
			return b, badMask("a sandbox", p)
		}
	}
	if err := b.check(); err != nil {
		return b, err
	}
	b.Labels, b.UpdatedAt = label.Update(nil, b.Labels), tx.now
	tx.touchRefs(b.Labels)
	return b, tx.exec(`UPDATE sandbox SET runtime = ?, options_url = ?, options = ?, spec_url = ?, spec = ?, labels = ?, extensions = ?, updated = ? WHERE ns = ? AND id = ?`,
		b.Runtime, b.Options.TypeURL, b.Options.Value, b.Spec.TypeURL, b.Spec.Value, encode(b.Labels), encodeExtensions(b.Extensions), tx.now.UnixNano(),
		tx.scope.Namespace, b.ID)
}

// DeleteSandbox removes the metadata.
func (tx *Tx) DeleteSandbox(sid string) error {
	if _, err := tx.Sandbox(sid); err != nil {
		return err
	}
	return tx.exec(`DELETE FROM sandbox WHERE ns = ? AND id = ?`, tx.scope.Namespace, sid)
}
