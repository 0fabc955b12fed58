package containerd

import (
	"context"

	api "github.com/containerd/containerd/api/services/namespaces/v1"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/store"
)

// Namespaces serves containerd.services.namespaces.v1.
type Namespaces struct {
	api.UnimplementedNamespacesServer
	Store *store.Store
}

func toNamespace(n store.Namespace) *api.Namespace {
	return &api.Namespace{Name: n.Name, Labels: n.Labels}
}

func (s Namespaces) all() store.Scoped { return s.Store.In(store.Scope{}) }

func (s Namespaces) Get(ctx context.Context, r *api.GetNamespaceRequest) (*api.GetNamespaceResponse, error) {
	n, err := store.Get(ctx, s.all(), func(tx *store.Tx) (store.Namespace, error) { return tx.NamespaceRow(r.GetName()) })
	return &api.GetNamespaceResponse{Namespace: toNamespace(n)}, err
}

func (s Namespaces) List(ctx context.Context, _ *api.ListNamespacesRequest) (*api.ListNamespacesResponse, error) {
	l, err := store.Get(ctx, s.all(), func(tx *store.Tx) ([]store.Namespace, error) { return tx.Namespaces() })
	return &api.ListNamespacesResponse{Namespaces: convert(l, toNamespace)}, err
}

func (s Namespaces) Create(ctx context.Context, r *api.CreateNamespaceRequest) (*api.CreateNamespaceResponse, error) {
	n := store.Namespace{Name: r.GetNamespace().GetName(), Labels: r.GetNamespace().GetLabels()}
	err := s.all().Update(ctx, func(tx *store.Tx) error { return tx.CreateNamespace(n) })
	return &api.CreateNamespaceResponse{Namespace: toNamespace(n)}, err
}

func (s Namespaces) Update(ctx context.Context, r *api.UpdateNamespaceRequest) (*api.UpdateNamespaceResponse, error) {
	in := store.Namespace{Name: r.GetNamespace().GetName(), Labels: r.GetNamespace().GetLabels()}
	n, err := store.Set(ctx, s.all(), func(tx *store.Tx) (store.Namespace, error) {
		return tx.UpdateNamespace(in, paths(r.GetUpdateMask())...)
	})
	return &api.UpdateNamespaceResponse{Namespace: toNamespace(n)}, err
}

func (s Namespaces) Delete(ctx context.Context, r *api.DeleteNamespaceRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, s.all().Update(ctx, func(tx *store.Tx) error { return tx.DeleteNamespace(r.GetName()) })
}
