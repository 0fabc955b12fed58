package containerd

import (
	"context"

	api "github.com/containerd/containerd/api/services/images/v1"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/engine/gc"
	"github.com/berthd/berth/store"
)

// Images serves containerd.services.images.v1.
type Images struct {
	api.UnimplementedImagesServer
	Store *store.Store
	GC    *gc.Collector
}

func toImage(i store.Image) *api.Image {
	return &api.Image{Name: i.Name, Labels: i.Labels, Target: toDescriptor(i.Target), CreatedAt: stamp(i.CreatedAt), UpdatedAt: stamp(i.UpdatedAt)}
}

func fromImage(i *api.Image) store.Image {
	return store.Image{Name: i.GetName(), Labels: i.GetLabels(), Target: fromDescriptor(i.GetTarget())}
}

func (s Images) Get(ctx context.Context, r *api.GetImageRequest) (*api.GetImageResponse, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	i, err := store.Get(ctx, v, func(tx *store.Tx) (store.Image, error) { return tx.Image(r.GetName()) })
	return &api.GetImageResponse{Image: toImage(i)}, err
}

func (s Images) List(ctx context.Context, r *api.ListImagesRequest) (*api.ListImagesResponse, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	l, err := store.Get(ctx, v, func(tx *store.Tx) ([]store.Image, error) { return tx.Images(r.GetFilters()...) })
	return &api.ListImagesResponse{Images: convert(l, toImage)}, err
}

func (s Images) Create(ctx context.Context, r *api.CreateImageRequest) (*api.CreateImageResponse, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	i := fromImage(r.GetImage())
	if e := r.GetSourceDateEpoch(); e != nil {
		i.CreatedAt = e.AsTime()
	}
	err = v.PromiseBytes(ctx, func(tx *store.Tx) (err error) { i, err = tx.CreateImage(i); return err })
	return &api.CreateImageResponse{Image: toImage(i)}, err
}

func (s Images) Update(ctx context.Context, r *api.UpdateImageRequest) (*api.UpdateImageResponse, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	i := fromImage(r.GetImage())
	if e := r.GetSourceDateEpoch(); e != nil {
		i.UpdatedAt = e.AsTime()
	}
	err = v.PromiseBytes(ctx, func(tx *store.Tx) (err error) { i, err = tx.UpdateImage(i, paths(r.GetUpdateMask())...); return err })
	return &api.UpdateImageResponse{Image: toImage(i)}, err
}

func (s Images) Delete(ctx context.Context, r *api.DeleteImageRequest) (*emptypb.Empty, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, s.GC.Remove(ctx, v, r.GetSync(), func(tx *store.Tx) error {
		return tx.DeleteImage(r.GetName(), digest.Digest(r.GetTarget().GetDigest()))
	})
}
