package containerd

import (
	"context"

	api "github.com/containerd/containerd/api/services/diff/v1"

	"github.com/berthd/berth/engine/image"
	"github.com/berthd/berth/store"
)

// Diff serves containerd.services.diff.v1.
type Diff struct {
	api.UnimplementedDiffServer
	Store  *store.Store
	Images *image.Images
}

// Apply unpacks a layer into mounts.
func (s Diff) Apply(ctx context.Context, r *api.ApplyRequest) (*api.ApplyResponse, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	d, err := s.Images.ApplyDiff(ctx, v, fromDescriptor(r.GetDiff()), fromMounts(r.GetMounts()), r.GetSyncFs())
	return &api.ApplyResponse{Applied: toDescriptor(d)}, err
}

// Diff makes a layer of the difference between mounts.
func (s Diff) Diff(ctx context.Context, r *api.DiffRequest) (*api.DiffResponse, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	req := image.DiffRequest{Left: fromMounts(r.GetLeft()), Right: fromMounts(r.GetRight()), MediaType: r.GetMediaType(), Ref: r.GetRef(), Labels: r.GetLabels()}
	if e := r.GetSourceDateEpoch(); e != nil {
		req.Epoch = e.AsTime()
	}
	d, err := s.Images.Diff(ctx, v, req)
	return &api.DiffResponse{Diff: toDescriptor(d)}, err
}
