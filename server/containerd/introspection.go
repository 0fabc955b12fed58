package containerd

import (
	"context"
	"os"
	"strings"
	"syscall"
	"time"

	api "github.com/containerd/containerd/api/services/introspection/v1"
	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/filter"
)

// Plugin is one part of the daemon as clients of the API know it: the list is
// made in daemon/wire.go, from the parts that were built.
type Plugin struct {
	Type         string // as io.containerd.snapshotter.v1
	ID           string
	Platforms    []string // os/arch
	Exports      map[string]string
	Capabilities []string
	Requires     []string
	Skipped      string // why it is not there, if it is not
	Failed       string // why it could not be built
}

// Fields serves filters.
func (p Plugin) Fields(path []string) (string, bool) {
	switch path[0] {
	case "type":
		return p.Type, true
	case "id":
		return p.ID, true
	}
	return "", false
}

// RuntimeInfo asks a runtime's shim what it can do.
type RuntimeInfo func(ctx context.Context, runtime string, options *anypb.Any) (*types.RuntimeInfo, error)

// Introspection serves containerd.services.introspection.v1.
type Introspection struct {
	api.UnimplementedIntrospectionServer
	UUID     string
	Parts    []Plugin
	Warnings []Warning
	Runtime  RuntimeInfo
	Extra    map[string]Extra // by type and id of the part, as in TYPE.ID
}

// Extra answers more about a part than its description.
type Extra func(ctx context.Context) (*anypb.Any, error)

// Warning is a use of something that will go, as `ctr deprecations list` shows it.
type Warning struct {
	ID      string
	Message string
	Last    time.Time // when it was last seen
}

func toPlugin(p Plugin) *api.Plugin {
	out := &api.Plugin{Type: p.Type, ID: p.ID, Requires: p.Requires, Exports: p.Exports, Capabilities: p.Capabilities}
	for _, s := range p.Platforms {
		os, arch, _ := strings.Cut(s, "/")
		out.Platforms = append(out.Platforms, &types.Platform{OS: os, Architecture: arch})
	}
	switch {
	case p.Failed != "":
		out.InitErr = &status.Status{Code: int32(codes.Unknown), Message: p.Failed}
	case p.Skipped != "":
		out.InitErr = &status.Status{Code: int32(codes.Unimplemented), Message: p.Skipped + ": skip plugin"}
	}
	return out
}

// Plugins lists the parts of the daemon.
func (s Introspection) Plugins(_ context.Context, r *api.PluginsRequest) (*api.PluginsResponse, error) {
	f, err := filter.Parse(r.GetFilters()...)
	if err != nil {
		return nil, err
	}
	resp := &api.PluginsResponse{}
	for _, p := range s.Parts {
		if f.Match(p.Fields) {
			resp.Plugins = append(resp.Plugins, toPlugin(p))
		}
	}
	return resp, nil
}

// Server says which daemon this is.
func (s Introspection) Server(context.Context, *emptypb.Empty) (*api.ServerResponse, error) {
	var st syscall.Stat_t
	if err := syscall.Stat("/proc/self/ns/pid", &st); err != nil {
		return nil, err
	}
	out := &api.ServerResponse{UUID: s.UUID, Pid: uint64(os.Getpid()), Pidns: st.Ino}
	for _, w := range s.Warnings {
		out.Deprecations = append(out.Deprecations, &api.DeprecationWarning{ID: w.ID, Message: w.Message, LastOccurrence: timestamppb.New(w.Last)})
	}
	return out, nil
}

// PluginInfo describes one part; for the runtime part it asks the shim.
func (s Introspection) PluginInfo(ctx context.Context, r *api.PluginInfoRequest) (*api.PluginInfoResponse, error) {
	for _, p := range s.Parts {
		if p.Type != r.GetType() || p.ID != r.GetID() {
			continue
		}
		resp := &api.PluginInfoResponse{Plugin: toPlugin(p)}
		if extra := s.Extra[p.Type+"."+p.ID]; extra != nil {
			var err error
			resp.Extra, err = extra(ctx)
			return resp, err
		}
		if p.Type != "io.containerd.runtime.v2" || r.GetOptions() == nil {
			return resp, nil
		}
		var req types.RuntimeRequest
		if err := r.GetOptions().UnmarshalTo(&req); err != nil {
			return nil, errs.New(errs.InvalidArgument, "options of plugin %s.%s: %v", p.Type, p.ID, err)
		}
		info, err := s.Runtime(ctx, req.GetRuntimePath(), req.GetOptions())
		if err != nil {
			return nil, err
		}
		resp.Extra, err = packed(info)
		return resp, err
	}
	return nil, errs.New(errs.NotFound, "plugin %s.%s: not found", r.GetType(), r.GetID())
}

// Version serves containerd.services.version.v1.
type Version struct {
	versionapi.UnimplementedVersionServer
	Text, Revision string
}

func (s Version) Version(context.Context, *emptypb.Empty) (*versionapi.VersionResponse, error) {
	return &versionapi.VersionResponse{Version: s.Text, Revision: s.Revision}, nil
}
