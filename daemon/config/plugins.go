package config

import (
	"runtime"
	"time"
)

func seconds(n int) Duration { return Duration(time.Duration(n) * time.Second) }

// maxMessage is the largest gRPC message either way, in bytes: containerd's default.
const maxMessage = 16 << 20

const defaultDownloads = 3

// Plugins are the settings of the parts; each field's key is containerd's name of the
// part.
type Plugins struct {
	Images     CRIImages     `toml:"io.containerd.cri.v1.images" comment:"Images, as Kubernetes asks for them."`
	Runtime    CRIRuntime    `toml:"io.containerd.cri.v1.runtime" comment:"Pods and containers, as Kubernetes asks for them."`
	CRI        CRIServer     `toml:"io.containerd.grpc.v1.cri" comment:"The streaming server of CRI: exec, attach, port-forward."`
	GC         GC            `toml:"io.containerd.gc.v1.scheduler" comment:"When garbage is collected."`
	Verifier   Verifier      `toml:"io.containerd.image-verifier.v1.bindir" comment:"Programs that may refuse an image before it is fetched."`
	Opt        Opt           `toml:"io.containerd.internal.v1.opt" comment:"Where added programs are."`
	Metadata   Metadata      `toml:"io.containerd.metadata.v1.bolt" comment:"The database."`
	Prometheus Prometheus    `toml:"io.containerd.metrics.v1.grpc-prometheus" comment:"Metrics of requests."`
	Restart    Restart       `toml:"io.containerd.monitor.container.v1.restart" comment:"Containers that are kept running."`
	Cgroups    CgroupMetrics `toml:"io.containerd.monitor.task.v1.cgroups" comment:"Metrics of containers."`
	NRI        NRI           `toml:"io.containerd.nri.v1.nri" comment:"Plugins of the Node Resource Interface."`
	Task       Task          `toml:"io.containerd.runtime.v2.task" comment:"Tasks."`
	DebugSock  DebugSocket   `toml:"io.containerd.server.v1.debug" comment:"The socket of pprof, metrics and health."`
	GRPC       GRPC          `toml:"io.containerd.server.v1.grpc" comment:"The socket of all APIs."`
	TCP        TCP           `toml:"io.containerd.server.v1.grpc-tcp" comment:"The same APIs over TCP. Whoever reaches it is root here: use TLS with tls_ca."`
	Metrics    Metrics       `toml:"io.containerd.server.v1.metrics" comment:"Metrics over HTTP, at /v1/metrics."`
	TTRPC      TTRPC         `toml:"io.containerd.server.v1.ttrpc" comment:"The socket that takes the events of shims."`
	Diff       DiffService   `toml:"io.containerd.service.v1.diff-service" comment:"Making and applying layers."`
	Tasks      TasksService  `toml:"io.containerd.service.v1.tasks-service" comment:"Classes of resources."`
	Shim       ShimParts     `toml:"io.containerd.shim.v1.manager" comment:"Shims."`
	Native     NativeDriver  `toml:"io.containerd.snapshotter.v1.native" comment:"Snapshots as plain copies."`
	Overlay    OverlayDriver `toml:"io.containerd.snapshotter.v1.overlayfs" comment:"Snapshots as overlay mounts."`
	Transfer   Transfer      `toml:"io.containerd.transfer.v1.local" comment:"Pull and push for clients of containerd's API."`

	// Others are tables of parts that berth does not have.
	Others map[string]any `toml:"-" rest:"*"`
}

// GC says when to collect garbage.
type GC struct {
	PauseThreshold    float64  `toml:"pause_threshold" comment:"Largest share of time that collecting may take, up to 0.5."`
	DeletionThreshold int      `toml:"deletion_threshold" comment:"Collect after so many removals; 0: after each, once schedule_delay has passed."`
	MutationThreshold int      `toml:"mutation_threshold" comment:"Collect after so many changes, counted once something was removed; 0: never for that."`
	ScheduleDelay     Duration `toml:"schedule_delay" comment:"Wait so long before a collection that a threshold asks for, so that several removals share one."`
	StartupDelay      Duration `toml:"startup_delay" comment:"Wait so long before the first collection."`
}

// Verifier are programs that may refuse images.
type Verifier struct {
	BinDir  string   `toml:"bin_dir" comment:"Every program in it is asked; all must agree."`
	Most    int      `toml:"max_verifiers" comment:"At most so many; negative: all, 0: none."`
	Timeout Duration `toml:"per_verifier_timeout" comment:"A program that answers later refuses."`
}

// Opt is a folder of added programs.
type Opt struct {
	Path string `toml:"path" comment:"PATH/bin comes first on PATH and PATH/lib on LD_LIBRARY_PATH of what the daemon starts, if they are there."`
}

// Metadata is about the database.
type Metadata struct {
	Sharing string `toml:"content_sharing_policy" comment:"shared: a blob of another namespace need not be sent again by who knows its digest; isolated: it must."`
	NoSync  bool   `toml:"no_sync" comment:"Accepted; berth's database commits without a flush and stays whole."`
}

// Prometheus is about metrics of requests.
type Prometheus struct {
	Histogram bool `toml:"grpc_histogram" comment:"Also how long requests took."`
}

// Restart is about containers that are kept running.
type Restart struct {
	Interval Duration `toml:"interval" comment:"Look at all of them at least this often; exits are acted upon at once."`
}

// CgroupMetrics is about metrics of containers.
type CgroupMetrics struct {
	Off bool `toml:"no_prometheus" comment:"No metrics of containers on the metrics page."`
}

// NRI is about NRI plugins.
type NRI struct {
	Off                 bool     `toml:"disable" comment:"No plugins."`
	Socket              string   `toml:"socket_path" comment:"Where plugins connect."`
	PluginPath          string   `toml:"plugin_path" comment:"Plugins in it are started."`
	PluginConfigPath    string   `toml:"plugin_config_path" comment:"Their configurations."`
	RegistrationTimeout Duration `toml:"plugin_registration_timeout" comment:"For a plugin to register."`
	RequestTimeout      Duration `toml:"plugin_request_timeout" comment:"For a plugin to answer."`
	NoConnections       bool     `toml:"disable_connections" comment:"Only plugins that berth starts."`

	Validator NRIValidator `toml:"default_validator" comment:"What plugins may not change."`
}

// NRIValidator forbids adjustments.
type NRIValidator struct {
	Enable           bool     `toml:"enable" comment:"Check what plugins ask for."`
	RejectOCIHooks   bool     `toml:"reject_oci_hook_adjustment" comment:"Refuse hooks."`
	RejectDefault    bool     `toml:"reject_runtime_default_seccomp_adjustment" comment:"Refuse a change of the default seccomp profile."`
	RejectUnconfined bool     `toml:"reject_unconfined_seccomp_adjustment" comment:"Refuse a profile where there is none."`
	RejectCustom     bool     `toml:"reject_custom_seccomp_adjustment" comment:"Refuse a change of a profile of the user's own."`
	RejectNamespaces bool     `toml:"reject_namespace_adjustment" comment:"Refuse a change of namespaces."`
	RejectSysctl     bool     `toml:"reject_sysctl_adjustment" comment:"Refuse a change of sysctls."`
	Required         []string `toml:"required_plugins" comment:"No container is created unless these took part."`
	TolerateMissing  string   `toml:"tolerate_missing_plugins_annotation" comment:"Pods with this annotation may do without them."`
}

// Task is about tasks.
type Task struct {
	Platforms []string `toml:"platforms" comment:"Platforms that can be run."`
}

// GRPC is the main socket.
type GRPC struct {
	Address string `toml:"address" comment:"Path of the socket."`
	UID     int    `toml:"uid" comment:"Its owner."`
	GID     int    `toml:"gid" comment:"Its group. Who may use the socket is root on this machine."`
	MaxRecv int    `toml:"max_recv_message_size" comment:"Largest message that is taken, in bytes."`
	MaxSend int    `toml:"max_send_message_size" comment:"Largest message that is sent, in bytes."`
}

// TCP serves the APIs over TCP.
type TCP struct {
	Address    string `toml:"address" comment:"host:port; empty: not served."`
	CA         string `toml:"tls_ca" comment:"Clients must have a certificate of this CA (file)."`
	Cert       string `toml:"tls_cert" comment:"Our certificate (file)."`
	Key        string `toml:"tls_key" comment:"Its key (file)."`
	CommonName string `toml:"tls_common_name" comment:"Clients' certificates must have this common name; empty: any."`
	MaxRecv    int    `toml:"max_recv_message_size" comment:"Largest message that is taken, in bytes."`
	MaxSend    int    `toml:"max_send_message_size" comment:"Largest message that is sent, in bytes."`
}

// TTRPC is the socket of shims.
type TTRPC struct {
	Address string `toml:"address" comment:"Path of the socket; empty: that of the APIs with .ttrpc behind it."`
	UID     int    `toml:"uid" comment:"Its owner."`
	GID     int    `toml:"gid" comment:"Its group."`
}

// DebugSocket serves pprof.
type DebugSocket struct {
	Address string `toml:"address" comment:"Path of the socket; empty: none."`
	UID     int    `toml:"uid" comment:"Its owner."`
	GID     int    `toml:"gid" comment:"Its group."`
}

// Metrics serves metrics over TCP.
type Metrics struct {
	Address string `toml:"address" comment:"host:port; empty: not served. There is no password on it: use 127.0.0.1."`
}

// DiffService makes and applies layers.
type DiffService struct {
	Default []string `toml:"default" comment:"Accepted; berth has one way to do it, \"walking\"."`
	SyncFS  bool     `toml:"sync_fs" comment:"Accepted; berth's layers are always on the disk before they count."`
}

// TasksService are classes of resources.
type TasksService struct {
	BlockIO string `toml:"blockio_config_file" comment:"Classes of block I/O."`
	RDT     string `toml:"rdt_config_file" comment:"Accepted; classes of cache and memory bandwidth are the groups in /sys/fs/resctrl."`
}

// ShimParts is what shims get.
type ShimParts struct {
	Env       []string `toml:"env" comment:"Added to the environment of every shim, as NAME=VALUE."`
	SocketDir string   `toml:"socket_dir" comment:"Where shims put their sockets; empty: below state."`
}

// NativeDriver copies.
type NativeDriver struct {
	Root string `toml:"root_path" comment:"Directory of its snapshots; empty: below root."`
}

// OverlayDriver stacks directories.
type OverlayDriver struct {
	Root         string   `toml:"root_path" comment:"Directory of its snapshots; empty: below root."`
	UpperLabel   bool     `toml:"upperdir_label" comment:"Accepted; snapshots carry no such label."`
	SyncRemove   bool     `toml:"sync_remove" comment:"Accepted; removed directories always go in the background of a collection."`
	SlowChown    bool     `toml:"slow_chown" comment:"Accepted; where the kernel has no idmapped mounts a pod with user namespaces is refused."`
	MountOptions []string `toml:"mount_options" comment:"Added to each mount, as \"volatile\" or \"index=off\"."`
}

// Transfer is pull and push for clients of containerd's API.
type Transfer struct {
	Downloads     int          `toml:"max_concurrent_downloads" comment:"Layers that one pull fetches at once."`
	FetchBuffer   int          `toml:"concurrent_layer_fetch_buffer" comment:"Accepted; berth decides by the speed it sees whether to fetch a layer in several ranges."`
	Uploads       int          `toml:"max_concurrent_uploaded_layers" comment:"Blobs that one push sends at once."`
	Unpacks       int          `toml:"max_concurrent_unpacks" comment:"Accepted; layers are unpacked while they arrive, all at once."`
	CheckPlatform bool         `toml:"check_platform_supported" comment:"Accepted; berth always checks that a snapshotter can take the platform."`
	ConfigPath    string       `toml:"config_path" comment:"Folders of registry hosts, with colons between; empty: that of the CRI images."`
	UnpackConfig  []UnpackRule `toml:"unpack_config" comment:"Accepted; the default snapshotter unpacks this machine's platform."`
}

// UnpackRule chooses a snapshotter for a platform.
type UnpackRule struct {
	Platform    string   `toml:"platform" comment:"As linux/amd64."`
	Snapshotter string   `toml:"snapshotter" comment:"Name of the snapshotter."`
	Differ      string   `toml:"differ" comment:"Accepted."`
	ConfigType  string   `toml:"config_type" comment:"Media type of the configs that it is for."`
	LayerTypes  []string `toml:"layer_types" comment:"Media types of the layers that it is for."`
	Optional    bool     `toml:"optional" comment:"Leave it out if its snapshotter is not there."`
}

func defaultPlugins() Plugins {
	return Plugins{
		Images: defaultImages(), Runtime: defaultRuntime(), CRI: defaultServer(),
		GC:       GC{PauseThreshold: 0.02, MutationThreshold: 100, StartupDelay: Duration(100 * time.Millisecond)},
		Verifier: Verifier{BinDir: "/opt/containerd/image-verifier/bin", Most: 10, Timeout: seconds(10)},
		Opt:      Opt{Path: "/opt/containerd"},
		Metadata: Metadata{Sharing: "shared"},
		Restart:  Restart{Interval: seconds(10)},
		NRI: NRI{
			Socket: "/var/run/nri/nri.sock", PluginPath: "/opt/nri/plugins", PluginConfigPath: "/etc/nri/conf.d",
			RegistrationTimeout: seconds(5), RequestTimeout: seconds(2), Validator: NRIValidator{Required: []string{}},
		},
		Task:     Task{Platforms: []string{"linux/" + runtime.GOARCH}},
		GRPC:     GRPC{Address: DefaultAddress, MaxRecv: maxMessage, MaxSend: maxMessage},
		TCP:      TCP{MaxRecv: maxMessage, MaxSend: maxMessage},
		Diff:     DiffService{Default: []string{"walking"}},
		Shim:     ShimParts{Env: []string{}},
		Overlay:  OverlayDriver{MountOptions: []string{}},
		Transfer: Transfer{Downloads: defaultDownloads, Uploads: 3, Unpacks: 1, UnpackConfig: []UnpackRule{}},
	}
}
