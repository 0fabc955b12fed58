package container

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/api/types"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/id"
	"github.com/berthd/berth/cli/client"
	"github.com/berthd/berth/cli/rootfs"
)

// diffed is what a container has changed, as a layer that a lease holds.
type diffed struct {
	layer *types.Descriptor
	below []*types.Mount
}

// leased calls fn with a client whose creations live until it returns.
func leased(ctx context.Context, c *client.Client, fn func(*client.Client) error) error {
	name := "berth-" + id.New(8)
	if _, err := c.Leases().Create(ctx, &leasesapi.CreateRequest{ID: name, Labels: map[string]string{"containerd.io/gc.expire": time.Now().Add(leaseTime).UTC().Format(time.RFC3339)}}); err != nil {
		return err
	}
	err := fn(c.Under(name))
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTime)
	defer cancel()
	_, derr := c.Leases().Delete(clean, &leasesapi.DeleteRequest{ID: name})
	return errors.Join(err, derr)
}

// withDiff has the daemon write the changes as a layer of that type.
func (a *app) withDiff(ctx context.Context, c *client.Client, k *containersapi.Container, mediaType string, fn func(*client.Client, *diffed) error) error {
	return leased(ctx, c, func(c *client.Client) (err error) {
		sn := k.GetSnapshotter()
		st, err := c.Snapshots().Stat(ctx, &snapshotsapi.StatSnapshotRequest{Snapshotter: sn, Key: k.GetSnapshotKey()})
		if err != nil {
			return err
		}
		upper, err := c.Snapshots().Mounts(ctx, &snapshotsapi.MountsRequest{Snapshotter: sn, Key: k.GetSnapshotKey()})
		if err != nil {
			return err
		}
		view := "berth-view-" + id.New(8)
		lower, err := c.Snapshots().View(ctx, &snapshotsapi.ViewSnapshotRequest{Snapshotter: sn, Key: view, Parent: st.GetInfo().GetParent()})
		if err != nil {
			return err
		}
		defer func() {
			_, rerr := c.Snapshots().Remove(context.WithoutCancel(ctx), &snapshotsapi.RemoveSnapshotRequest{Snapshotter: sn, Key: view})
			err = errors.Join(err, rerr)
		}()
		r, err := c.Diffs().Diff(ctx, &diffapi.DiffRequest{Left: lower.GetMounts(), Right: upper.GetMounts(), MediaType: mediaType, Ref: view})
		if err != nil {
			return err
		}
		return fn(c, &diffed{r.GetDiff(), lower.GetMounts()})
	})
}

// list prints the paths of a layer.
func (d *diffed) list(layer io.Reader, out io.Writer) error {
	tr := tar.NewReader(layer)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			_, err = io.Copy(io.Discard, layer)
			return err
		}
		if err != nil {
			return fmt.Errorf("read the changes: %w", err)
		}
		name := path.Clean("/" + h.Name)
		if name == "/" {
			continue
		}
		what := "A"
		if base, ok := strings.CutPrefix(path.Base(name), ".wh."); ok {
			if strings.HasPrefix(base, ".wh.") { // an opaque directory: it is listed itself
				continue
			}
			what, name = "D", path.Join(path.Dir(name), base)
		} else if there, err := rootfs.Exists(d.below, name); err == nil && there {
			what = "C"
		} else if err != nil && !errs.Is(err, errs.Unimplemented) {
			return err
		}
		if _, err := fmt.Fprintln(out, what, name); err != nil {
			return err
		}
	}
}
