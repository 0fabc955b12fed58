package containerd

import (
	"context"
	"time"

	api "github.com/containerd/containerd/api/services/sandbox/v1"
	"github.com/containerd/containerd/api/types"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/engine/gc"
	"github.com/berthd/berth/engine/sandbox"
	"github.com/berthd/berth/store"
)

// Sandboxes serves the store of containerd.services.sandbox.v1: metadata only.
type Sandboxes struct {
	api.UnimplementedStoreServer
	Store *store.Store
	GC    *gc.Collector
}

func toSandbox(b store.Sandbox) *types.Sandbox {
	return &types.Sandbox{
		SandboxID: b.ID, Runtime: &types.Sandbox_Runtime{Name: b.Runtime, Options: toAny(b.Options)}, Spec: toAny(b.Spec), Labels: b.Labels,
		CreatedAt: stamp(b.CreatedAt), UpdatedAt: stamp(b.UpdatedAt), Extensions: toAnys(b.Extensions), Sandboxer: b.Sandboxer,
	}
}

func fromSandbox(b *types.Sandbox) store.Sandbox {
	return store.Sandbox{
		ID: b.GetSandboxID(), Runtime: b.GetRuntime().GetName(), Options: fromAny(b.GetRuntime().GetOptions()), Spec: fromAny(b.GetSpec()),
		Labels: b.GetLabels(), Extensions: fromAnys(b.GetExtensions()), Sandboxer: b.GetSandboxer(),
	}
}

func (s Sandboxes) Create(ctx context.Context, r *api.StoreCreateRequest) (*api.StoreCreateResponse, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	b, err := store.Set(ctx, v, func(tx *store.Tx) (store.Sandbox, error) { return tx.CreateSandbox(fromSandbox(r.GetSandbox())) })
	return &api.StoreCreateResponse{Sandbox: toSandbox(b)}, err
}

func (s Sandboxes) Update(ctx context.Context, r *api.StoreUpdateRequest) (*api.StoreUpdateResponse, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	b, err := store.Set(ctx, v, func(tx *store.Tx) (store.Sandbox, error) {
		return tx.UpdateSandbox(fromSandbox(r.GetSandbox()), r.GetFields()...)
	})
	return &api.StoreUpdateResponse{Sandbox: toSandbox(b)}, err
}

func (s Sandboxes) Delete(ctx context.Context, r *api.StoreDeleteRequest) (*api.StoreDeleteResponse, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	return &api.StoreDeleteResponse{}, s.GC.Remove(ctx, v, false, func(tx *store.Tx) error { return tx.DeleteSandbox(r.GetSandboxID()) })
}

func (s Sandboxes) Get(ctx context.Context, r *api.StoreGetRequest) (*api.StoreGetResponse, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	b, err := store.Get(ctx, v, func(tx *store.Tx) (store.Sandbox, error) { return tx.Sandbox(r.GetSandboxID()) })
	return &api.StoreGetResponse{Sandbox: toSandbox(b)}, err
}

func (s Sandboxes) List(ctx context.Context, r *api.StoreListRequest) (*api.StoreListResponse, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	l, err := store.Get(ctx, v, func(tx *store.Tx) ([]store.Sandbox, error) { return tx.Sandboxes(r.GetFilters()...) })
	return &api.StoreListResponse{List: convert(l, toSandbox)}, err
}

// Controllers serves the controller of containerd.services.sandbox.v1, for the
// sandboxes that shims hold. Pods are made and ended by the CRI alone.
type Controllers struct {
	api.UnimplementedControllerServer
	Store *store.Store
	Boxes *sandbox.Boxes
}

// in checks the sandboxer and returns the store as the request may see it.
func (s Controllers) in(ctx context.Context, sandboxer string) (store.Scoped, error) {
	switch sandboxer {
	case sandbox.Controller:
		return in(ctx, s.Store)
	case "":
		return store.Scoped{}, errs.New(errs.InvalidArgument, "the sandbox controller must be named: %s", sandbox.Controller)
	case "podsandbox":
		return store.Scoped{}, errs.New(errs.Unimplemented, "pods are made and ended by the CRI: use crictl, or berth pod")
	}
	return store.Scoped{}, errs.New(errs.NotFound, "sandbox controller %q: not found (there is %s)", sandboxer, sandbox.Controller)
}

func (s Controllers) Create(ctx context.Context, r *api.ControllerCreateRequest) (*api.ControllerCreateResponse, error) {
	v, err := s.in(ctx, r.GetSandboxer())
	if err != nil {
		return nil, err
	}
	b := fromSandbox(r.GetSandbox())
	err = s.Boxes.Create(ctx, v, sandbox.BoxRequest{
		ID: r.GetSandboxID(), Runtime: b.Runtime, Options: b.Options, Spec: b.Spec, Rootfs: fromMounts(r.GetRootfs()), Config: fromAny(r.GetOptions()),
		NetNS: r.GetNetnsPath(), Annotations: r.GetAnnotations(),
	})
	return &api.ControllerCreateResponse{SandboxID: r.GetSandboxID()}, err
}

func (s Controllers) Start(ctx context.Context, r *api.ControllerStartRequest) (*api.ControllerStartResponse, error) {
	v, err := s.in(ctx, r.GetSandboxer())
	if err != nil {
		return nil, err
	}
	pid, at, err := s.Boxes.Start(ctx, v, r.GetSandboxID())
	return &api.ControllerStartResponse{SandboxID: r.GetSandboxID(), Pid: pid, CreatedAt: stamp(at)}, err
}

func (s Controllers) Stop(ctx context.Context, r *api.ControllerStopRequest) (*api.ControllerStopResponse, error) {
	v, err := s.in(ctx, r.GetSandboxer())
	if err != nil {
		return nil, err
	}
	return &api.ControllerStopResponse{}, s.Boxes.Stop(ctx, v, r.GetSandboxID(), time.Duration(r.GetTimeoutSecs())*time.Second)
}

func (s Controllers) Wait(ctx context.Context, r *api.ControllerWaitRequest) (*api.ControllerWaitResponse, error) {
	v, err := s.in(ctx, r.GetSandboxer())
	if err != nil {
		return nil, err
	}
	e, err := s.Boxes.Wait(ctx, v, r.GetSandboxID())
	return &api.ControllerWaitResponse{ExitStatus: e.Status, ExitedAt: stamp(e.At)}, err
}

func (s Controllers) Status(ctx context.Context, r *api.ControllerStatusRequest) (*api.ControllerStatusResponse, error) {
	v, err := s.in(ctx, r.GetSandboxer())
	if err != nil {
		return nil, err
	}
	st, boot, err := s.Boxes.Status(ctx, v, r.GetSandboxID(), r.GetVerbose())
	return &api.ControllerStatusResponse{
		SandboxID: st.ID, Pid: st.Pid, State: st.State, Info: st.Info, CreatedAt: stamp(st.CreatedAt), ExitedAt: stamp(st.ExitedAt), Extra: toAny(st.Extra),
		Address: boot.Address, Version: uint32(boot.Version),
	}, err
}

func (s Controllers) Shutdown(ctx context.Context, r *api.ControllerShutdownRequest) (*api.ControllerShutdownResponse, error) {
	v, err := s.in(ctx, r.GetSandboxer())
	if err != nil {
		return nil, err
	}
	return &api.ControllerShutdownResponse{}, s.Boxes.Shutdown(ctx, v, r.GetSandboxID())
}

func (s Controllers) Metrics(ctx context.Context, r *api.ControllerMetricsRequest) (*api.ControllerMetricsResponse, error) {
	v, err := s.in(ctx, r.GetSandboxer())
	if err != nil {
		return nil, err
	}
	m, err := s.Boxes.Metrics(ctx, v, r.GetSandboxID())
	return &api.ControllerMetricsResponse{Metrics: &types.Metric{ID: m.ID, Timestamp: stamp(m.At), Data: toAny(m.Data)}}, err
}

func (s Controllers) Update(ctx context.Context, r *api.ControllerUpdateRequest) (*api.ControllerUpdateResponse, error) {
	v, err := s.in(ctx, r.GetSandboxer())
	if err != nil {
		return nil, err
	}
	b := fromSandbox(r.GetSandbox())
	return &api.ControllerUpdateResponse{}, s.Boxes.Update(ctx, v, r.GetSandboxID(), sandbox.Change{
		Runtime: b.Runtime, Options: b.Options, Spec: b.Spec, Labels: b.Labels, Extensions: b.Extensions, Fields: r.GetFields(),
	})
}
