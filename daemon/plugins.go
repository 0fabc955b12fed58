package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
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

// proxies shows the parts that other daemons would serve, and that nobody here can use
// yet, as missing.
func (p *parts) proxies() {
	types := map[string]string{"snapshot": "snapshotter.v1", "content": "content.v1", "diff": "differ.v1", "sandbox": "sandbox.controller.v1"}
	for _, name := range slices.Sorted(maps.Keys(p.cfg.ProxyPlugins)) {
		why := "proxy plugins cannot be used yet"
		p.plugin(types[p.cfg.ProxyPlugins[name].Type], name).Skipped = why
		p.log.Warn("part is not available", "name", name, "address", p.cfg.ProxyPlugins[name].Address, "error", why)
	}
}

// required refuses to start without the parts that the configuration insists on.
func (p *parts) required() error {
	var all []error
	for _, want := range p.cfg.Required {
		i := slices.IndexFunc(p.plugins, func(pl containerd.Plugin) bool { return pl.Type+"."+pl.ID == want })
		switch {
		case i < 0:
			all = append(all, fmt.Errorf("required_plugins: there is no part %s", want))
		case p.plugins[i].Skipped != "" || p.plugins[i].Failed != "":
			all = append(all, fmt.Errorf("required_plugins: %s is not there: %s", want, p.plugins[i].Skipped+p.plugins[i].Failed))
		}
	}
	return errors.Join(all...)
}
