package daemon

import (
	"context"
	"runtime"
	"slices"

	"github.com/containerd/containerd/api/types"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/base/spec"
	"github.com/berthd/berth/server/containerd"
)

// onPlatform are the types of plugin that clients expect to work on some platforms
// only; buildkitd refuses a daemon whose runtime names none.
var onPlatform = []string{"snapshotter.v1", "differ.v1", "runtime.v2", "monitor.task.v1", "mount-handler.v1"}

// plugin adds a part to the list that the API shows. The prefix of all types is
// containerd's.
func (p *parts) plugin(typ, name string) *containerd.Plugin {
	pl := containerd.Plugin{Type: "io.containerd." + typ, ID: name}
	if slices.Contains(onPlatform, typ) {
		pl.Platforms = []string{"linux/" + runtime.GOARCH}
	}
	p.plugins = append(p.plugins, pl)
	return &p.plugins[len(p.plugins)-1]
}

// services are the names of register's services as plugins; older clients look for
// the in-process ones beside those of gRPC.
func (p *parts) services() {
	for _, name := range []string{"containers", "content", "diff", "images", "introspection", "namespaces", "snapshots", "tasks"} {
		p.plugin("service.v1", name+"-service")
	}
	for _, name := range []string{
		"containers", "content", "diff", "events", "healthcheck", "images", "introspection", "leases", "namespaces", "sandbox-controllers", "sandboxes", "snapshots", "streaming", "tasks", "transfer", "version",
	} {
		p.plugin("grpc.v1", name)
	}
	p.plugin("server.v1", "grpc")
	p.plugin("server.v1", "ttrpc")
	set := p.cfg.Plugins
	for _, o := range []struct{ name, address string }{{"grpc-tcp", set.TCP.Address}, {"debug", set.DebugSock.Address}, {"metrics", set.Metrics.Address}} {
		if pl := p.plugin("server.v1", o.name); o.address == "" {
			pl.Skipped = "no address is configured"
		}
	}
	p.plugin("http.v1", "pprof")
}

// runtimeInfo asks a runtime's shim what it can do.
func (p *parts) runtimeInfo(ctx context.Context, name string, options *anypb.Any) (*types.RuntimeInfo, error) {
	return p.launcher.Info(ctx, name, spec.Any{TypeURL: options.GetTypeUrl(), Value: options.GetValue()})
}
