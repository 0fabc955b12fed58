package container

import (
	"context"
	"errors"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/id"
	"github.com/berthd/berth/cli/client"
)

// unpackLayer has the daemon fill one snapshot and seals it.
func unpackLayer(ctx context.Context, c *client.Client, sn, parent, chain string, layer *types.Descriptor) error {
	key := "extract-" + id.New(8) + " " + chain
	p, err := c.Snapshots().Prepare(ctx, &snapshotsapi.PrepareSnapshotRequest{Snapshotter: sn, Key: key, Parent: parent})
	if err != nil {
		return err
	}
	_, err = c.Diffs().Apply(ctx, &diffapi.ApplyRequest{Diff: layer, Mounts: p.GetMounts()})
	if err == nil {
		_, err = c.Snapshots().Commit(ctx, &snapshotsapi.CommitSnapshotRequest{Snapshotter: sn, Name: chain, Key: key})
	}
	if err == nil {
		return nil
	}
	_, rerr := c.Snapshots().Remove(context.WithoutCancel(ctx), &snapshotsapi.RemoveSnapshotRequest{Snapshotter: sn, Key: key})
	if errs.Is(err, errs.AlreadyExists) { // somebody else has unpacked it meanwhile
		return rerr
	}
	return errors.Join(err, rerr)
}

// keepSnapshot ties the top snapshot to the image's config, so that it lives as
// long as the image.
func keepSnapshot(ctx context.Context, c *client.Client, config, sn, chain string) error {
	label := "containerd.io/gc.ref.snapshot." + sn
	_, err := c.Content().Update(ctx, &contentapi.UpdateRequest{
		Info:       &contentapi.Info{Digest: config, Labels: map[string]string{label: chain}},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels." + label}},
	})
	return err
}
