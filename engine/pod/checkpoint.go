package pod

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/id"
	"github.com/berthd/berth/engine/image"
	"github.com/berthd/berth/host/shim"
	"github.com/berthd/berth/store"
)

// A checkpoint is a tar that other runtimes and checkpointctl read, too
// (protocols.md 3.1):
//
//	config.dump      which container it is, and when
//	spec.dump        its OCI spec
//	status           its CRI status
//	rootfs-diff.tar  what it has changed in its root file system, as a layer
//	checkpoint/      CRIU's image
//	stats-dump  dump.log    of CRIU
const (
	dumpConfig = "config.dump"
	dumpSpec   = "spec.dump"
	dumpStatus = "status"
	dumpRootfs = "rootfs-diff.tar"
	dumpImage  = "checkpoint"
	dumpStats  = "stats-dump"
	dumpLog    = "dump.log"
)

// dirCheckpoint is where one is made, in the container's directory.
const dirCheckpoint = "checkpoint-"

// Checkpoint writes the state of a running container into a new file at location; the
// container goes on. A time-out of 0 is none.
func (p *Pods) Checkpoint(ctx context.Context, ns, id, location string, timeout time.Duration) error {
	if !filepath.IsAbs(location) || filepath.Clean(location) == "/" {
		return errs.New(errs.InvalidArgument, "checkpoint: the location %q is no absolute path of a file", location)
	}
	if p.cfg.NoCheckpoints {
		return errs.New(errs.FailedPrecondition, "checkpoint: enable_criu is off in the configuration")
	}
	if _, err := exec.LookPath("criu"); err != nil {
		return errs.New(errs.FailedPrecondition, "checkpoint: criu is not on the daemon's PATH: install criu 3.16 or newer")
	}
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	return p.change(ctx, ns, id, "checkpoint", func(c *Container) error {
		if c.State != store.ContainerRunning {
			return errs.New(errs.FailedPrecondition, "it is %s", c.State)
		}
		return p.checkpoint(ctx, c, location)
	})
}

func (p *Pods) checkpoint(ctx context.Context, c *Container, location string) (err error) {
	dir := filepath.Join(p.containerDir(c), dirCheckpoint+id.New(4))
	work := filepath.Join(dir, "work")
	if err := os.MkdirAll(work, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	dump := filepath.Join(dir, dumpImage)
	options, err := shim.EncodeCheckpoint(shim.CheckpointChoices{Dir: dump, Work: work, OpenTCP: true, UnixSockets: true, FileLocks: true})
	if err != nil {
		return err
	}
	if err := p.tasks.CheckpointTo(ctx, p.scope(c.Namespace), c.ID, dump, options); err != nil {
		return err
	}
	if err := p.describe(ctx, c, dir); err != nil {
		return err
	}
	for _, name := range []string{dumpStats, dumpLog} { // CRIU writes them where it likes
		if err := errs.Ignore(os.Rename(filepath.Join(work, name), filepath.Join(dir, name)), fs.ErrNotExist); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(work); err != nil {
		return err
	}
	return writeArchive(ctx, location, dir)
}

// dumped is config.dump.
type dumped struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	Image     string    `json:"rootfsImage,omitempty"`
	ImageRef  string    `json:"rootfsImageRef,omitempty"`
	ImageName string    `json:"rootfsImageName,omitempty"`
	Runtime   string    `json:"runtime,omitempty"`
	Created   time.Time `json:"createdTime"`
	Dumped    time.Time `json:"checkpointedTime"`
	Restored  bool      `json:"restored"`
}

// describe writes what CRIU does not know.
func (p *Pods) describe(ctx context.Context, c *Container, dir string) error {
	v := p.scope(c.Namespace)
	row, err := store.Get(ctx, v, func(tx *store.Tx) (store.Container, error) { return tx.Container(c.ID) })
	if err != nil {
		return err
	}
	config, err := json.MarshalIndent(dumped{
		ID: c.ID, Name: c.Config.GetMetadata().GetName(), Image: c.ImageName, ImageRef: c.ImageRef, ImageName: c.ImageName,
		Runtime: row.Runtime, Created: c.CreatedAt.UTC(), Dumped: time.Now().UTC(),
	}, "", "  ")
	if err != nil {
		return err
	}
	status, err := json.MarshalIndent(c.containerBody, "", "  ")
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{dumpConfig: config, dumpSpec: row.Spec.Value, dumpStatus: status} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return err
		}
	}
	mounts, err := v.SnapshotMounts(ctx, c.Snapshot, c.ID)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, dumpRootfs), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(image.WriteChanges(ctx, f, mounts), f.Close())
}

// writeArchive makes a tar of dir's files at a place that may be anywhere: it is whole
// or not there, and what was there before is replaced, not followed.
func writeArchive(ctx context.Context, location, dir string) (err error) {
	f, err := os.CreateTemp(filepath.Dir(location), "."+filepath.Base(location)+"-")
	if err != nil {
		return fmt.Errorf("write the archive: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	w := tar.NewWriter(f)
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		return addFile(w, dir, path, d)
	})
	if err == nil {
		err = w.Close()
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return fmt.Errorf("write the archive: %w", err)
	}
	if err := unix.Rename(f.Name(), location); err != nil {
		return fmt.Errorf("write the archive: %w", err)
	}
	return f.Close()
}

func addFile(w *tar.Writer, dir, path string, d fs.DirEntry) error {
	st, err := d.Info()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() && !st.IsDir() {
		return nil // nothing of a checkpoint is anything else
	}
	h, err := tar.FileInfoHeader(st, "")
	if err != nil {
		return err
	}
	if h.Name, err = filepath.Rel(dir, path); err != nil {
		return err
	}
	if st.IsDir() {
		h.Name += "/"
	}
	if err := w.WriteHeader(h); err != nil || st.IsDir() {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	_, err = io.CopyN(w, f, st.Size())
	return errors.Join(err, f.Close())
}
