package containerd

import (
	"context"

	api "github.com/containerd/containerd/api/services/leases/v1"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/engine/gc"
	"github.com/berthd/berth/store"
)

// Leases serves containerd.services.leases.v1.
type Leases struct {
	api.UnimplementedLeasesServer
	Store *store.Store
	GC    *gc.Collector
}

func toLease(l store.Lease) *api.Lease {
	return &api.Lease{ID: l.ID, Labels: l.Labels, CreatedAt: stamp(l.CreatedAt)}
}

func fromResource(r *api.Resource) store.Resource {
	return store.Resource{Type: r.GetType(), ID: r.GetID()}
}

func (s Leases) Create(ctx context.Context, r *api.CreateRequest) (*api.CreateResponse, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	l, err := store.Set(ctx, v, func(tx *store.Tx) (store.Lease, error) {
		return tx.CreateLease(store.Lease{ID: r.GetID(), Labels: r.GetLabels()})
	})
	return &api.CreateResponse{Lease: toLease(l)}, err
}

func (s Leases) Delete(ctx context.Context, r *api.DeleteRequest) (*emptypb.Empty, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, s.GC.Remove(ctx, v, r.GetSync(), func(tx *store.Tx) error { return tx.DeleteLease(r.GetID()) })
}

func (s Leases) List(ctx context.Context, r *api.ListRequest) (*api.ListResponse, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	l, err := store.Get(ctx, v, func(tx *store.Tx) ([]store.Lease, error) { return tx.Leases(r.GetFilters()...) })
	return &api.ListResponse{Leases: convert(l, toLease)}, err
}

func (s Leases) AddResource(ctx context.Context, r *api.AddResourceRequest) (*emptypb.Empty, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, v.Update(ctx, func(tx *store.Tx) error { return tx.AddResource(r.GetID(), fromResource(r.GetResource())) })
}

func (s Leases) DeleteResource(ctx context.Context, r *api.DeleteResourceRequest) (*emptypb.Empty, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, s.GC.Remove(ctx, v, false, func(tx *store.Tx) error {
		return tx.DeleteResource(r.GetID(), fromResource(r.GetResource()))
	})
}

func (s Leases) ListResources(ctx context.Context, r *api.ListResourcesRequest) (*api.ListResourcesResponse, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	l, err := store.Get(ctx, v, func(tx *store.Tx) ([]store.Resource, error) { return tx.Resources(r.GetID()) })
	return &api.ListResourcesResponse{Resources: convert(l, func(r store.Resource) *api.Resource {
		return &api.Resource{ID: r.ID, Type: r.Type}
	})}, err
}
