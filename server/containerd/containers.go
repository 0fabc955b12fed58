package containerd

import (
	"context"

	api "github.com/containerd/containerd/api/services/containers/v1"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/engine/gc"
	"github.com/berthd/berth/store"
)

// Containers serves containerd.services.containers.v1.
type Containers struct {
	api.UnimplementedContainersServer
	Store *store.Store
	GC    *gc.Collector
}

func toContainer(c store.Container) *api.Container {
	return &api.Container{
		ID: c.ID, Labels: c.Labels, Image: c.Image, Runtime: &api.Container_Runtime{Name: c.Runtime, Options: toAny(c.Options)}, Spec: toAny(c.Spec),
		Snapshotter: c.Snapshotter, SnapshotKey: c.SnapshotKey, CreatedAt: stamp(c.CreatedAt), UpdatedAt: stamp(c.UpdatedAt),
		Extensions: toAnys(c.Extensions), Sandbox: c.Sandbox,
	}
}

func fromContainer(c *api.Container) store.Container {
	return store.Container{
		ID: c.GetID(), Labels: c.GetLabels(), Image: c.GetImage(), Runtime: c.GetRuntime().GetName(), Options: fromAny(c.GetRuntime().GetOptions()),
		Spec: fromAny(c.GetSpec()), Snapshotter: c.GetSnapshotter(), SnapshotKey: c.GetSnapshotKey(), Extensions: fromAnys(c.GetExtensions()),
		Sandbox: c.GetSandbox(),
	}
}

func (s Containers) Get(ctx context.Context, r *api.GetContainerRequest) (*api.GetContainerResponse, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	c, err := store.Get(ctx, v, func(tx *store.Tx) (store.Container, error) { return tx.Container(r.GetID()) })
	return &api.GetContainerResponse{Container: toContainer(c)}, err
}

func (s Containers) list(ctx context.Context, filters []string) ([]store.Container, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	return store.Get(ctx, v, func(tx *store.Tx) ([]store.Container, error) { return tx.Containers(filters...) })
}

func (s Containers) List(ctx context.Context, r *api.ListContainersRequest) (*api.ListContainersResponse, error) {
	l, err := s.list(ctx, r.GetFilters())
	return &api.ListContainersResponse{Containers: convert(l, toContainer)}, err
}

func (s Containers) ListStream(r *api.ListContainersRequest, out api.Containers_ListStreamServer) error {
	l, err := s.list(out.Context(), r.GetFilters())
	if err != nil {
		return err
	}
	for _, c := range l {
		if err := out.Send(&api.ListContainerMessage{Container: toContainer(c)}); err != nil {
			return err
		}
	}
	return nil
}

func (s Containers) Create(ctx context.Context, r *api.CreateContainerRequest) (*api.CreateContainerResponse, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	c, err := store.Set(ctx, v, func(tx *store.Tx) (store.Container, error) {
		return tx.CreateContainer(fromContainer(r.GetContainer()))
	})
	return &api.CreateContainerResponse{Container: toContainer(c)}, err
}

func (s Containers) Update(ctx context.Context, r *api.UpdateContainerRequest) (*api.UpdateContainerResponse, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	c, err := store.Set(ctx, v, func(tx *store.Tx) (store.Container, error) {
		return tx.UpdateContainer(fromContainer(r.GetContainer()), paths(r.GetUpdateMask())...)
	})
	return &api.UpdateContainerResponse{Container: toContainer(c)}, err
}

func (s Containers) Delete(ctx context.Context, r *api.DeleteContainerRequest) (*emptypb.Empty, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, s.GC.Remove(ctx, v, false, func(tx *store.Tx) error { return tx.DeleteContainer(r.GetID()) })
}
