package store

import (
	"context"
	"database/sql"
	"errors"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/filter"
	"github.com/berthd/berth/base/label"
	"github.com/berthd/berth/store/blob"
)

// Content is a blob as one namespace sees it. The bytes are kept once.
type Content struct {
	Digest    digest.Digest
	Size      int64 // bytes
	Labels    map[string]string
	CreatedAt time.Time
	UpdatedAt time.Time
}

const contentColumns = `digest, size, labels, created, updated`

func scanContent(s scanner) (c Content, err error) {
	var created, updated int64
	err = s.Scan(&c.Digest, &c.Size, (*labels)(&c.Labels), &created, &updated)
	c.CreatedAt, c.UpdatedAt = at(created), at(updated)
	return c, err
}

// Fields serves filters.
func (c Content) Fields(path []string) (string, bool) {
	switch path[0] {
	case "digest":
		return c.Digest.String(), true
	case "size":
		return strconv.FormatInt(c.Size, 10), true
	case "labels":
		return filter.Labels(c.Labels, path[1:])
	}
	return "", false
}

// Content returns what is known of one blob.
func (tx *Tx) Content(dg digest.Digest) (Content, error) {
	c, err := one(tx, scanContent, `SELECT `+contentColumns+` FROM content WHERE ns = ? AND digest = ?`, tx.scope.Namespace, dg.String())
	return c, missing(err, "content %s", dg)
}

// HasContent reports whether the namespace sees the blob.
func (tx *Tx) HasContent(dg digest.Digest) (bool, error) {
	return tx.exists(`SELECT 1 FROM content WHERE ns = ? AND digest = ?`, tx.scope.Namespace, dg.String())
}

// Contents lists those that match, by digest.
func (tx *Tx) Contents(filters ...string) ([]Content, error) {
	f, err := filter.Parse(filters...)
	if err != nil {
		return nil, err
	}
	all, err := many(tx, scanContent, `SELECT `+contentColumns+` FROM content WHERE ns = ? ORDER BY digest`, tx.scope.Namespace)
	return keep(all, f), err
}

// present reports whether the namespace sees the blob and its file is whole as far
// as its size tells: a blob whose file was lost may be written again.
func (tx *Tx) present(dg digest.Digest) (bool, error) {
	c, err := tx.Content(dg)
	if errs.Is(err, errs.NotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	size, err := tx.store.blobs.Size(dg)
	return err == nil && size == c.Size, errs.Ignore(err, errs.NotFound)
}

// UpdateContent changes the labels that paths name, or all of them.
func (tx *Tx) UpdateContent(in Content, paths ...string) (Content, error) {
	c, err := tx.Content(in.Digest)
	if err != nil {
		return c, err
	}
	if len(paths) == 0 {
		c.Labels = in.Labels
	}
	for _, p := range paths {
		field, key := maskField(p)
		if field != "labels" {
			return c, badMask("content", p)
		}
		c.Labels = maskMap(c.Labels, in.Labels, key)
	}
	if err := label.CheckAll(c.Labels); err != nil {
		return c, err
	}
	c.Labels, c.UpdatedAt = label.Update(nil, c.Labels), tx.now
	tx.touchContent(c)
	return c, tx.exec(`UPDATE content SET labels = ?, updated = ? WHERE ns = ? AND digest = ?`, encode(c.Labels), tx.now.UnixNano(), tx.scope.Namespace, c.Digest.String())
}

// DeleteContent takes the blob out of the namespace's sight. The bytes go when no
// namespace sees them any more.
func (tx *Tx) DeleteContent(dg digest.Digest) error {
	there, err := tx.HasContent(dg)
	if err != nil {
		return err
	}
	if !there {
		return missing(sql.ErrNoRows, "content %s", dg)
	}
	tx.emit("/content/delete", ContentDelete{dg.String()})
	return tx.removeContent(tx.scope.Namespace, dg.String())
}

// removeContent deletes the row and, if it was the last, leaves the file to the
// sweep.
func (tx *Tx) removeContent(ns, dg string) error {
	if err := tx.exec(`DELETE FROM content WHERE ns = ? AND digest = ?`, ns, dg); err != nil {
		return err
	}
	return tx.exec(`INSERT OR IGNORE INTO trash (type, resource) SELECT 'blob', ?1 WHERE NOT EXISTS (SELECT 1 FROM content WHERE digest = ?1)`, dg)
}

// putContent makes the row of a blob whose file is in place, or renews the row of
// one whose file had been lost. flushed says that the file is durable.
func (tx *Tx) putContent(c Content, flushed bool) error {
	if err := label.CheckAll(c.Labels); err != nil {
		return err
	}
	var boot any
	if !flushed {
		boot = tx.store.cfg.BootID
	}
	tx.made = true
	tx.touchContent(c)
	if err := tx.exec(`INSERT INTO content (ns, `+contentColumns+`, boot) VALUES (?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (ns, digest) DO UPDATE SET size = excluded.size, boot = excluded.boot, updated = excluded.updated`, tx.scope.Namespace, c.Digest.String(), c.Size,
		encode(c.Labels), tx.now.UnixNano(), tx.now.UnixNano(), boot); err != nil {
		return err
	}
	if err := tx.exec(`DELETE FROM trash WHERE type = 'blob' AND resource = ?`, c.Digest.String()); err != nil {
		return err
	}
	tx.emit("/content/create", ContentCreate{c.Digest.String(), c.Size})
	return tx.hold(ResourceContent, c.Digest.String())
}

// elsewhere reports the size of a blob that another namespace sees, and whether
// its bytes are durable.
func (tx *Tx) elsewhere(dg digest.Digest) (size int64, flushed bool, err error) {
	type found struct {
		size int64
		boot sql.NullString
	}
	f, err := one(tx, func(s scanner) (f found, err error) { return f, s.Scan(&f.size, &f.boot) },
		`SELECT size, boot FROM content WHERE digest = ? LIMIT 1`, dg.String())
	return f.size, !f.boot.Valid, err
}

// OpenContent opens a blob that the namespace sees. A row whose file has gone is
// NotFound too: whoever asked should fetch it again.
func (v Scoped) OpenContent(ctx context.Context, dg digest.Digest) (*blob.File, error) {
	if _, err := Get(ctx, v, func(tx *Tx) (Content, error) { return tx.Content(dg) }); err != nil {
		return nil, err
	}
	return v.s.blobs.Open(dg)
}

// ShareContent lets the namespace see a blob that another one has, if the store
// shares blobs; NotFound if nobody has it. The scope's lease holds it.
func (v Scoped) ShareContent(ctx context.Context, dg digest.Digest, labels map[string]string) (Content, error) {
	unlock, err := v.s.digests.Lock(ctx, dg.String())
	if err != nil {
		return Content{}, err
	}
	defer unlock()
	return Set(ctx, v, func(tx *Tx) (Content, error) {
		c, err := tx.Content(dg)
		if err == nil {
			return c, tx.hold(ResourceContent, dg.String())
		}
		if !errs.Is(err, errs.NotFound) || v.s.cfg.Isolated {
			return c, err
		}
		size, flushed, other := tx.elsewhere(dg)
		if errors.Is(other, sql.ErrNoRows) {
			return c, err
		}
		if other != nil {
			return c, other
		}
		c = Content{Digest: dg, Size: size, Labels: label.Update(nil, labels), CreatedAt: tx.now, UpdatedAt: tx.now}
		return c, tx.putContent(c, flushed)
	})
}
