// Package blob keeps content-addressed files and the files they grow from. It
// owns one directory and knows nothing of names, namespaces or rows:
//
//	ROOT/blobs/<algorithm>/<hex>   a whole blob; its name is its digest
//	ROOT/ingest/<id>               a blob that is still being written
//
// It never decides when a blob may go: the store does.
package blob

import (
	_ "crypto/sha256" // the algorithms that digests may name
	_ "crypto/sha512"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
)

// Dir is the directory of blobs.
type Dir struct {
	root string
}

// Open makes the directories that are missing, readable by root alone.
func Open(root string) (*Dir, error) {
	for _, d := range []string{root, filepath.Join(root, "blobs"), filepath.Join(root, "ingest"), filepath.Join(root, "blobs", "sha256")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("blob directory: %w", err)
		}
	}
	return &Dir{root: root}, nil
}

// Root is where everything is kept.
func (d *Dir) Root() string { return d.root }

// Path is the file of a blob, whether or not it is there. A malformed digest is
// InvalidArgument: it never becomes a path.
func (d *Dir) Path(dg digest.Digest) (string, error) {
	if err := dg.Validate(); err != nil {
		return "", errs.New(errs.InvalidArgument, "digest %.80q: %v", string(dg), err)
	}
	return filepath.Join(d.root, "blobs", dg.Algorithm().String(), dg.Encoded()), nil
}

// File is an open blob.
type File struct {
	*os.File
	Size int64
}

// Open opens a blob for reading; the error is NotFound where there is none.
func (d *Dir) Open(dg digest.Digest) (*File, error) {
	p, err := d.Path(dg)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(p)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errs.New(errs.NotFound, "blob %s is not on disk", dg)
	}
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &File{File: f, Size: st.Size()}, nil
}

// Size returns the size of a blob in bytes; NotFound where there is none.
func (d *Dir) Size(dg digest.Digest) (int64, error) {
	p, err := d.Path(dg)
	if err != nil {
		return 0, err
	}
	st, err := os.Stat(p)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, errs.New(errs.NotFound, "blob %s is not on disk", dg)
	}
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// Remove deletes a blob; one that is not there is not an error.
func (d *Dir) Remove(dg digest.Digest) error {
	p, err := d.Path(dg)
	if err != nil {
		return err
	}
	return errs.Ignore(os.Remove(p), fs.ErrNotExist)
}

// List gives every blob file; a name that is no digest is left out.
func (d *Dir) List() ([]digest.Digest, error) {
	algs, err := os.ReadDir(filepath.Join(d.root, "blobs"))
	if err != nil {
		return nil, err
	}
	var out []digest.Digest
	for _, a := range algs {
		files, err := os.ReadDir(filepath.Join(d.root, "blobs", a.Name()))
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			dg := digest.Digest(a.Name() + ":" + f.Name())
			if dg.Validate() == nil {
				out = append(out, dg)
			}
		}
	}
	return out, nil
}

// Ingests gives the ids of the ingest files on disk.
func (d *Dir) Ingests() ([]string, error) {
	files, err := os.ReadDir(filepath.Join(d.root, "ingest"))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, f := range files {
		out = append(out, f.Name())
	}
	return out, nil
}

// RemoveIngest deletes an ingest's file; one that is not there is not an error.
func (d *Dir) RemoveIngest(id string) error {
	p, err := d.ingestPath(id)
	if err != nil {
		return err
	}
	return errs.Ignore(os.Remove(p), fs.ErrNotExist)
}

func (d *Dir) ingestPath(id string) (string, error) {
	if id == "" || strings.ContainsAny(id, "/\x00") || strings.HasPrefix(id, ".") {
		return "", errs.New(errs.InvalidArgument, "ingest id %q", id)
	}
	return filepath.Join(d.root, "ingest", id), nil
}

// SyncFS flushes the whole file system that the blobs are on: every blob,
// and every layer on the same file system, that was written before the call is
// durable after it (syncfs(2)).
func SyncFS(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("flush the file system of %s: %w", dir, err)
	}
	return nil
}

// IngestSize is how many bytes of an ingest are on disk and when the last was
// written; zero values where there is no file.
func (d *Dir) IngestSize(id string) (int64, time.Time) {
	p, err := d.ingestPath(id)
	if err != nil {
		return 0, time.Time{}
	}
	st, err := os.Stat(p)
	if err != nil {
		return 0, time.Time{}
	}
	return st.Size(), st.ModTime().UTC()
}
