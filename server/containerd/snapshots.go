package containerd

import (
	"context"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/engine/gc"
	"github.com/berthd/berth/store"
	"github.com/berthd/berth/store/snapshot"
)

// Snapshots serves containerd.services.snapshots.v1.
type Snapshots struct {
	api.UnimplementedSnapshotsServer
	Store *store.Store
	GC    *gc.Collector
}

func toSnapshot(s store.Snapshot) *api.Info {
	return &api.Info{Name: s.Name, Parent: s.Parent, Kind: api.Kind(s.Kind), CreatedAt: stamp(s.CreatedAt), UpdatedAt: stamp(s.UpdatedAt), Labels: s.Labels}
}

func (s Snapshots) Prepare(ctx context.Context, r *api.PrepareSnapshotRequest) (*api.PrepareSnapshotResponse, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	m, err := v.MakeSnapshot(ctx, store.Snapshot{Snapshotter: r.GetSnapshotter(), Name: r.GetKey(), Parent: r.GetParent(), Kind: snapshot.Active, Labels: r.GetLabels()})
	return &api.PrepareSnapshotResponse{Mounts: toMounts(m)}, err
}

func (s Snapshots) View(ctx context.Context, r *api.ViewSnapshotRequest) (*api.ViewSnapshotResponse, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	m, err := v.MakeSnapshot(ctx, store.Snapshot{Snapshotter: r.GetSnapshotter(), Name: r.GetKey(), Parent: r.GetParent(), Kind: snapshot.View, Labels: r.GetLabels()})
	return &api.ViewSnapshotResponse{Mounts: toMounts(m)}, err
}

func (s Snapshots) Mounts(ctx context.Context, r *api.MountsRequest) (*api.MountsResponse, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	m, err := v.SnapshotMounts(ctx, r.GetSnapshotter(), r.GetKey())
	return &api.MountsResponse{Mounts: toMounts(m)}, err
}

func (s Snapshots) Commit(ctx context.Context, r *api.CommitSnapshotRequest) (*emptypb.Empty, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, v.CommitSnapshot(ctx, r.GetSnapshotter(), r.GetKey(), r.GetName(), r.GetParent(), r.GetLabels())
}

func (s Snapshots) Remove(ctx context.Context, r *api.RemoveSnapshotRequest) (*emptypb.Empty, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, s.GC.Remove(ctx, v, false, func(tx *store.Tx) error {
		if _, err := s.Store.Driver(r.GetSnapshotter()); err != nil {
			return err
		}
		return tx.RemoveSnapshot(r.GetSnapshotter(), r.GetKey())
	})
}

func (s Snapshots) Stat(ctx context.Context, r *api.StatSnapshotRequest) (*api.StatSnapshotResponse, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	i, err := store.Get(ctx, v, func(tx *store.Tx) (store.Snapshot, error) { return tx.Snapshot(r.GetSnapshotter(), r.GetKey()) })
	return &api.StatSnapshotResponse{Info: toSnapshot(i)}, err
}

func (s Snapshots) Update(ctx context.Context, r *api.UpdateSnapshotRequest) (*api.UpdateSnapshotResponse, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	in := store.Snapshot{Snapshotter: r.GetSnapshotter(), Name: r.GetInfo().GetName(), Labels: r.GetInfo().GetLabels()}
	i, err := store.Set(ctx, v, func(tx *store.Tx) (store.Snapshot, error) { return tx.UpdateSnapshot(in, paths(r.GetUpdateMask())...) })
	return &api.UpdateSnapshotResponse{Info: toSnapshot(i)}, err
}

// listBatch is how many infos go into one message of a list.
const listBatch = 100

func (s Snapshots) List(r *api.ListSnapshotsRequest, out api.Snapshots_ListServer) error {
	v, err := in(out.Context(), s.Store)
	if err != nil {
		return err
	}
	l, err := store.Get(out.Context(), v, func(tx *store.Tx) ([]store.Snapshot, error) {
		if _, err := s.Store.Driver(r.GetSnapshotter()); err != nil {
			return nil, err
		}
		return tx.Snapshots(r.GetSnapshotter(), r.GetFilters()...)
	})
	if err != nil {
		return err
	}
	for len(l) > 0 {
		n := min(listBatch, len(l))
		if err := out.Send(&api.ListSnapshotsResponse{Info: convert(l[:n], toSnapshot)}); err != nil {
			return err
		}
		l = l[n:]
	}
	return nil
}

func (s Snapshots) Usage(ctx context.Context, r *api.UsageRequest) (*api.UsageResponse, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	u, err := v.SnapshotUsage(ctx, r.GetSnapshotter(), r.GetKey())
	return &api.UsageResponse{Size: u.Size, Inodes: u.Inodes}, err
}

func (s Snapshots) Cleanup(ctx context.Context, _ *api.CleanupRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, s.Store.EmptyTrash(ctx)
}
