package task

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/id"
	"github.com/berthd/berth/host/archive"
	"github.com/berthd/berth/host/shim"
	"github.com/berthd/berth/store"
)

// The media types of a checkpoint's two parts, as containerd's clients know them.
const (
	criuImage        = "application/vnd.containerd.container.criu.checkpoint.criu.tar"
	checkpointConfig = "application/vnd.containerd.container.checkpoint.config.v1+proto"
)

// restoreFrom is the annotation that names a directory instead of content.
const restoreFrom = "RestoreFromPath"

// Checkpoint writes the state of a task's processes by CRIU: into the directory
// that the options name, and then nothing is returned; or else as content, a tar
// of CRIU's files and the container's spec, which the caller's lease must hold.
func (t *Tasks) Checkpoint(ctx context.Context, v store.Scoped, cid string, options store.Any) ([]ocispec.Descriptor, error) {
	dir, err := shim.CheckpointDir(options)
	if err != nil {
		return nil, err
	}
	if dir != "" {
		return nil, t.CheckpointTo(ctx, v, cid, dir, options)
	}
	c, err := store.Get(ctx, v, func(tx *store.Tx) (store.Container, error) { return tx.Container(cid) })
	if err != nil {
		return nil, err
	}
	task, _, err := t.find(ctx, v.Namespace(), cid)
	if err != nil {
		return nil, err
	}
	dir = filepath.Join(t.bundle(task.key), "checkpoint-"+id.New(4))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("checkpoint task %q: %w", cid, err)
	}
	parts, err := t.checkpointContent(ctx, v, c, dir, options)
	return parts, errors.Join(err, os.RemoveAll(dir))
}

// CheckpointTo is Checkpoint into a directory.
func (t *Tasks) CheckpointTo(ctx context.Context, v store.Scoped, cid, dir string, options store.Any) error {
	if !filepath.IsAbs(dir) {
		return errs.New(errs.InvalidArgument, "checkpoint task %q: the directory %q is not an absolute path", cid, dir)
	}
	return do(ctx, t, v, "checkpoint", cid, func(api shim.Task) error { return api.Checkpoint(ctx, dir, options) })
}

func (t *Tasks) checkpointContent(ctx context.Context, v store.Scoped, c store.Container, dir string, options store.Any) ([]ocispec.Descriptor, error) {
	if err := t.CheckpointTo(ctx, v, c.ID, dir, options); err != nil {
		return nil, err
	}
	image, err := putContent(ctx, v, criuImage, func(w io.Writer) error { return archive.Diff(ctx, w, "", dir, archive.DiffOptions{}) })
	if err != nil {
		return nil, fmt.Errorf("store the checkpoint of task %q: %w", c.ID, err)
	}
	spec, err := shim.EncodeAny(c.Spec)
	if err != nil {
		return nil, err
	}
	config, err := putContent(ctx, v, checkpointConfig, func(w io.Writer) error {
		_, err := io.Copy(w, bytes.NewReader(spec))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("store the spec of checkpointed task %q: %w", c.ID, err)
	}
	return []ocispec.Descriptor{image, config}, nil
}

// putContent makes content of what write writes.
func putContent(ctx context.Context, v store.Scoped, mediaType string, write func(io.Writer) error) (ocispec.Descriptor, error) {
	ref := "checkpoint-" + id.New(8)
	w, err := v.Writer(ctx, store.WriterOptions{Ref: ref})
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	err = write(w)
	d := ocispec.Descriptor{MediaType: mediaType, Digest: w.Digest(), Size: w.Offset()}
	if err == nil {
		err = errs.Ignore(w.Commit(ctx, store.CommitOptions{}), errs.AlreadyExists)
	}
	if err != nil {
		err = errors.Join(err, w.Close(), errs.Ignore(v.Abort(context.WithoutCancel(ctx), ref), errs.NotFound))
		return ocispec.Descriptor{}, err
	}
	return d, w.Close()
}

// restoreDir is the directory with the CRIU image that a task is to start from, or
// "". One that is content is unpacked into the bundle, and goes with it.
func (t *Tasks) restoreDir(ctx context.Context, v store.Scoped, task *Task, r CreateRequest) (string, error) {
	if r.Checkpoint != "" {
		return r.Checkpoint, nil
	}
	if d := r.Restore; d.Digest != "" || len(d.Annotations) > 0 {
		if dir := d.Annotations[restoreFrom]; dir != "" {
			return dir, nil
		}
		return t.unpackCheckpoint(ctx, v, task, d)
	}
	return shim.RestoreDir(task.row.Body.Options)
}

func (t *Tasks) unpackCheckpoint(ctx context.Context, v store.Scoped, task *Task, d ocispec.Descriptor) (string, error) {
	if d.MediaType != criuImage {
		return "", errs.New(errs.InvalidArgument, "a task cannot start from %q: give a checkpoint of type %s", d.MediaType, criuImage)
	}
	f, err := v.OpenContent(ctx, d.Digest)
	if err != nil {
		return "", fmt.Errorf("open checkpoint: %w", err)
	}
	defer f.Close() // only read from
	dir := filepath.Join(t.bundle(task.key), "checkpoint")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", fmt.Errorf("unpack checkpoint: %w", err)
	}
	if _, err := archive.Apply(ctx, dir, f, archive.ApplyOptions{}); err != nil {
		return "", fmt.Errorf("unpack checkpoint %s: %w", d.Digest, err)
	}
	return dir, nil
}
