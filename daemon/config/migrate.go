package config

import (
	"fmt"
	"slices"
	"strings"
)

const (
	pluginCRI     = "io.containerd.grpc.v1.cri"
	pluginImages  = "io.containerd.cri.v1.images"
	pluginRuntime = "io.containerd.cri.v1.runtime"
	pluginGRPC    = "io.containerd.server.v1.grpc"
	pluginTCP     = "io.containerd.server.v1.grpc-tcp"
	pluginTTRPC   = "io.containerd.server.v1.ttrpc"
	pluginDebug   = "io.containerd.server.v1.debug"
	pluginMetrics = "io.containerd.server.v1.metrics"
)

// shortNames are how version 1 called parts.
var shortNames = map[string]string{
	"cri": pluginCRI, "linux": "io.containerd.runtime.v1.linux", "task": "io.containerd.runtime.v2.task",
	"overlayfs": "io.containerd.snapshotter.v1.overlayfs", "native": "io.containerd.snapshotter.v1.native",
	"btrfs": "io.containerd.snapshotter.v1.btrfs", "zfs": "io.containerd.snapshotter.v1.zfs", "aufs": "io.containerd.snapshotter.v1.aufs",
	"devmapper": "io.containerd.snapshotter.v1.devmapper", "scheduler": "io.containerd.gc.v1.scheduler",
	"cgroups": "io.containerd.monitor.v1.cgroups", "opt": "io.containerd.internal.v1.opt", "restart": "io.containerd.internal.v1.restart",
	"diff-service": "io.containerd.service.v1.diff-service", "bolt": "io.containerd.metadata.v1.bolt", "content": "io.containerd.content.v1.content",
}

// renamed are parts that got another name with version 3.
var renamed = map[string]string{
	"io.containerd.internal.v1.restart": "io.containerd.monitor.container.v1.restart",
	"io.containerd.monitor.v1.cgroups":  "io.containerd.monitor.task.v1.cgroups",
}

// version is that of the format that a file is written in.
func version(n *node) (int, error) {
	v := n.get("version")
	if v == nil {
		return 1, nil
	}
	i, ok := v.value.(int64)
	switch {
	case !ok:
		return 0, fmt.Errorf("%s: want a number from 1 to %d, not %s", v.at, Newest, kindOf(v))
	case i > Newest:
		return 0, fmt.Errorf("%s: version %d is newer than %d, the newest that this berth reads; install a newer berth, or write the file for version %d", v.at, i, Newest, Newest)
	case i < 1: // containerd takes 0 for no version
		return 1, nil
	}
	return int(i), nil
}

// migrate brings a file's tree to the newest version. What both an old and a new key
// say, the new one decides.
func migrate(n *node, from int) {
	if from < 2 {
		toLongNames(n)
	}
	if from < 3 {
		splitCRI(n)
	}
	if from < 4 {
		moveServers(n)
	}
	// A key of every version that was made a list.
	cni := []string{"plugins", pluginRuntime, "cni"}
	if dir := n.get(append(slices.Clone(cni), "bin_dir")...); dir != nil && dir.value != "" && n.get(append(slices.Clone(cni), "bin_dirs")...) == nil {
		n.put(&node{array: true, list: []*node{dir}, at: dir.at}, append(cni, "bin_dirs")...)
	}
}

func toLongNames(n *node) {
	if plugins := n.get("plugins"); plugins != nil && plugins.table != nil {
		for _, k := range plugins.keys() {
			if long, ok := shortNames[k]; ok {
				n.move([]string{"plugins", k}, []string{"plugins", long})
			}
		}
	}
	renameList(n, shortNames)
}

func renameList(n *node, names map[string]string) {
	for _, list := range []string{"disabled_plugins", "required_plugins"} {
		l := n.get(list)
		if l == nil {
			continue
		}
		for _, e := range l.list {
			if s, ok := e.value.(string); ok && names[s] != "" {
				e.value = names[s]
			}
		}
	}
}

// imageKeys are those of version 2's CRI table that went to the images; streamKeys
// stay. All others went to the runtime.
var (
	imageKeys  = []string{"registry", "image_decryption", "max_concurrent_downloads", "image_pull_progress_timeout", "image_pull_with_sync_fs", "stats_collect_period"}
	storeKeys  = []string{"snapshotter", "disable_snapshot_annotations", "discard_unpacked_layers"}
	streamKeys = []string{"disable_tcp_service", "stream_server_address", "stream_server_port", "stream_idle_timeout", "enable_tls_streaming", "x509_key_pair_streaming"}
)

// splitCRI is the step from version 2 to 3.
func splitCRI(n *node) {
	renameList(n, renamed)
	for old, name := range renamed {
		n.move([]string{"plugins", old}, []string{"plugins", name})
	}
	if sched := n.take("plugins", "io.containerd.runtime.v2.task", "sched_core"); sched != nil && sched.value == true {
		env := n.get("plugins", "io.containerd.shim.v1.manager", "env")
		if env == nil {
			env = &node{array: true, at: sched.at}
			n.put(env, "plugins", "io.containerd.shim.v1.manager", "env")
		}
		env.list = append(env.list, &node{value: "SCHED_CORE=1", at: sched.at})
	}
	cri := n.get("plugins", pluginCRI)
	if cri == nil || cri.table == nil {
		return
	}
	at := func(keys ...string) []string { return append([]string{"plugins"}, keys...) }
	for _, k := range imageKeys {
		n.move(at(pluginCRI, k), at(pluginImages, k))
	}
	for _, k := range storeKeys {
		n.move(at(pluginCRI, "containerd", k), at(pluginImages, k))
	}
	n.move(at(pluginCRI, "sandbox_image"), at(pluginImages, "pinned_images", "sandbox"))
	if cri := n.get(at(pluginCRI)...); cri != nil {
		for _, k := range cri.keys() {
			if !slices.Contains(streamKeys, k) {
				n.put(n.take(at(pluginCRI, k)...), at(pluginRuntime, k)...)
			}
		}
	}
	runtimes := n.get(at(pluginRuntime, "containerd", "runtimes")...)
	if runtimes == nil || runtimes.table == nil {
		return
	}
	for _, k := range runtimes.keys() {
		if r := runtimes.table[k]; r.table != nil {
			r.move([]string{"sandbox_mode"}, []string{"sandboxer"})
		}
	}
}

// moveServers is the step from version 3 to 4.
func moveServers(n *node) {
	uid, gid := n.get("grpc", "uid"), n.get("grpc", "gid")
	for _, m := range []struct{ from, to string }{
		{"grpc.address", pluginGRPC + "|address"}, {"grpc.uid", pluginGRPC + "|uid"}, {"grpc.gid", pluginGRPC + "|gid"},
		{"grpc.tcp_address", pluginTCP + "|address"}, {"grpc.tcp_tls_ca", pluginTCP + "|tls_ca"}, {"grpc.tcp_tls_cert", pluginTCP + "|tls_cert"},
		{"grpc.tcp_tls_key", pluginTCP + "|tls_key"}, {"grpc.tcp_tls_common_name", pluginTCP + "|tls_common_name"},
		{"ttrpc.address", pluginTTRPC + "|address"}, {"ttrpc.uid", pluginTTRPC + "|uid"}, {"ttrpc.gid", pluginTTRPC + "|gid"},
		{"debug.address", pluginDebug + "|address"}, {"debug.uid", pluginDebug + "|uid"}, {"debug.gid", pluginDebug + "|gid"},
		{"metrics.address", pluginMetrics + "|address"}, {"metrics.grpc_histogram", "io.containerd.metrics.v1.grpc-prometheus|grpc_histogram"},
	} {
		n.move(strings.Split(m.from, "."), append([]string{"plugins"}, strings.Split(m.to, "|")...))
	}
	for _, size := range []string{"max_recv_message_size", "max_send_message_size"} {
		if v := n.take("grpc", size); v != nil && v.value != int64(0) { // 0 meant the default
			n.put(v, "plugins", pluginGRPC, size)
			n.put(v, "plugins", pluginTCP, size)
		}
	}
	for k, v := range map[string]*node{"uid": uid, "gid": gid} { // the second socket belonged to whom the first did
		if v != nil && n.get("plugins", pluginTTRPC, k) == nil {
			n.put(v, "plugins", pluginTTRPC, k)
		}
	}
	// Until version 3 the second socket's place followed from the first's.
	if a := n.get("plugins", pluginGRPC, "address"); a != nil && a.value != "" {
		if t := n.get("plugins", pluginTTRPC, "address"); t == nil || t.value == "" {
			n.take("plugins", pluginTTRPC, "address")
			if first, ok := a.value.(string); ok {
				n.put(&node{value: first + ".ttrpc", at: a.at}, "plugins", pluginTTRPC, "address")
			}
		}
	}
	for _, empty := range []string{"grpc", "ttrpc", "metrics"} {
		if t := n.get(empty); t != nil && t.table != nil && len(t.table) == 0 {
			n.take(empty)
		}
	}
}
