package config

import (
	"fmt"
	"strings"
)

// Deprecation is a use of something that will go, by containerd's id for it.
type Deprecation struct {
	ID      string
	Message string
}

// aging are the keys whose use is reported, by their path in the newest version.
var aging = []struct{ path, id, text string }{
	{"plugins|" + pluginImages + "|registry|mirrors", "cri-registry-mirrors", "write a hosts.toml for each host in a folder of registry.config_path"},
	{"plugins|" + pluginImages + "|registry|configs", "cri-registry-configs", "write a hosts.toml for each host in a folder of registry.config_path"},
	{"plugins|" + pluginImages + "|registry|auths", "cri-registry-auths", "put the credentials into a docker config.json and name it in berth.credential_files"},
	{"plugins|" + pluginRuntime + "|cni|bin_dir", "cri-cni-bin-dir", "use bin_dirs, a list"},
	{"plugins|" + pluginRuntime + "|enable_cdi", "enable-cdi", "CDI devices are always on; leave the key out"},
	{"plugins|io.containerd.tracing.processor.v1.otlp", "tracing-processor-config", "berth exports no traces; leave the table out"},
	{"plugins|io.containerd.internal.v1.tracing", "tracing-service-config", "berth exports no traces; leave the table out"},
}

func deprecated(n *node) (out []Deprecation) {
	add := func(v *node, id, text string) {
		out = append(out, Deprecation{"io.containerd.deprecation/" + id, fmt.Sprintf("%s is deprecated: %s", v.at, text)})
	}
	for _, a := range aging {
		v := n.get(strings.Split(a.path, "|")...)
		if v != nil && v.value != "" && !(v.table != nil && len(v.table) == 0) {
			add(v, a.id, a.text)
		}
	}
	runtimes := n.get("plugins", pluginRuntime, "containerd", "runtimes")
	for _, name := range runtimes.names() {
		if v := runtimes.get(name, "options", "TaskApiAddress"); v != nil {
			add(v, "runc-options-task-api-address", "leave it out")
		}
		if v := runtimes.get(name, "options", "TaskApiVersion"); v != nil {
			add(v, "runc-options-task-api-version", "leave it out")
		}
	}
	return out
}

// absent are parts of containerd that berth does not have; their tables are in every
// file that `containerd config default` wrote, so that they deserve no warning.
var absent = []string{
	"io.containerd.snapshotter.v1.", "io.containerd.differ.v1.", "io.containerd.mount-handler.v1.", "io.containerd.mount-manager.v1.",
	"io.containerd.tracing.", "io.containerd.internal.v1.tracing", "io.containerd.runtime.v1.", "io.containerd.content.v1.content",
	"io.containerd.sandbox.", "io.containerd.podsandbox.", "io.containerd.grpc.v1.", "io.containerd.ttrpc.v1.", "io.containerd.service.v1.",
	"io.containerd.metrics.v1.", "io.containerd.http.v1.", "io.containerd.event.v1.", "io.containerd.lease.v1.", "io.containerd.streaming.v1.",
	"io.containerd.warning.v1.",
}

func known(plugin string) bool {
	for _, a := range absent {
		if strings.HasPrefix(plugin, a) {
			return true
		}
	}
	return false
}
