package blob

import (
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/failpoint"
)

// Ingest is a blob being written. One goroutine uses it at a time.
type Ingest struct {
	dir    *Dir
	path   string
	f      *os.File
	alg    digest.Algorithm
	hash   hash.Hash
	offset int64
	queued int64 // write-back was started up to here
}

// writeBehind is how many bytes may be dirty before their write-back is started,
// so that a later flush finds little left to do.
const writeBehind = 8 << 20

// Ingest opens the file of an ingest, made if it is not there. What a former
// writer left is hashed again, and writing goes on behind it.
func (d *Dir) Ingest(id string, alg digest.Algorithm) (*Ingest, error) {
	p, err := d.ingestPath(id)
	if err != nil {
		return nil, err
	}
	if !alg.Available() {
		return nil, errs.New(errs.InvalidArgument, "digest algorithm %q is not known", alg)
	}
	f, err := os.OpenFile(p, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open ingest: %w", err)
	}
	in := &Ingest{dir: d, path: p, f: f, alg: alg, hash: alg.Hash()}
	if in.offset, err = io.Copy(in.hash, f); err != nil {
		return nil, errors.Join(fmt.Errorf("read what was ingested before: %w", err), f.Close())
	}
	return in, nil
}

// Write appends.
func (in *Ingest) Write(p []byte) (int, error) {
	n, err := in.f.Write(p)
	in.hash.Write(p[:n])
	in.offset += int64(n)
	if in.offset-in.queued >= writeBehind {
		// A hint only: a file system that cannot do it flushes later.
		_ = unix.SyncFileRange(int(in.f.Fd()), in.queued, in.offset-in.queued, unix.SYNC_FILE_RANGE_WRITE)
		in.queued = in.offset
	}
	if err != nil {
		return n, fmt.Errorf("write ingest at %d: %w", in.offset, err)
	}
	return n, nil
}

// Offset is how many bytes are there.
func (in *Ingest) Offset() int64 { return in.offset }

// Reader reads the bytes so far, without moving where Write goes on.
func (in *Ingest) Reader() io.Reader { return io.NewSectionReader(in.f, 0, in.offset) }

// Digest is that of the bytes so far.
func (in *Ingest) Digest() digest.Digest { return digest.NewDigest(in.alg, in.hash) }

// Algorithm is the one that the bytes are hashed with.
func (in *Ingest) Algorithm() digest.Algorithm { return in.alg }

// Reset drops all bytes, and hashes with alg from now on.
func (in *Ingest) Reset(alg digest.Algorithm) error {
	if !alg.Available() {
		return errs.New(errs.InvalidArgument, "digest algorithm %q is not known", alg)
	}
	if err := in.f.Truncate(0); err != nil {
		return err
	}
	if _, err := in.f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	in.alg, in.hash, in.offset, in.queued = alg, alg.Hash(), 0, 0
	return nil
}

// Rehash reads the bytes again with another algorithm.
func (in *Ingest) Rehash(alg digest.Algorithm) error {
	if alg == in.alg {
		return nil
	}
	if !alg.Available() {
		return errs.New(errs.InvalidArgument, "digest algorithm %q is not known", alg)
	}
	h := alg.Hash()
	if _, err := io.Copy(h, io.NewSectionReader(in.f, 0, in.offset)); err != nil {
		return err
	}
	in.alg, in.hash = alg, h
	return nil
}

// Seal turns the ingest into the blob of its digest and closes it. With flush
// the blob is durable when Seal returns (file, then directory); without, the
// caller flushes the file system before a row promises the blob.
func (in *Ingest) Seal(flush bool) (digest.Digest, error) {
	dg := in.Digest()
	target, err := in.dir.Path(dg)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o700); err != nil {
		return "", err
	}
	if err := in.f.Chmod(0o400); err != nil {
		return "", err
	}
	if flush {
		if err := in.f.Sync(); err != nil {
			return "", fmt.Errorf("flush blob %s: %w", dg, err)
		}
	}
	failpoint.Here("blob.synced")
	if err := os.Rename(in.path, target); err != nil {
		return "", fmt.Errorf("seal blob %s: %w", dg, err)
	}
	failpoint.Here("blob.renamed")
	if flush {
		if err := syncDir(filepath.Dir(target)); err != nil {
			return "", fmt.Errorf("flush directory of blob %s: %w", dg, err)
		}
	}
	return dg, in.f.Close()
}

// Close keeps the bytes for a later writer.
func (in *Ingest) Close() error { return in.f.Close() }

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
