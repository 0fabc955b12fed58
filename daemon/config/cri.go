package config

// CRIImages is about images of pods.
type CRIImages struct {
	Snapshotter     string                     `toml:"snapshotter" comment:"Of pods whose runtime names none; also the default of every other client."`
	NoAnnotations   bool                       `toml:"disable_snapshot_annotations" comment:"Accepted; there are no remote snapshotters yet to be told anything."`
	DiscardLayers   bool                       `toml:"discard_unpacked_layers" comment:"Accepted; compressed layers are kept with their image."`
	Downloads       int                        `toml:"max_concurrent_downloads" comment:"Layers that one pull fetches at once."`
	FetchBuffer     int                        `toml:"concurrent_layer_fetch_buffer" comment:"Accepted; berth decides by the speed it sees whether to fetch a layer in several ranges."`
	ProgressTimeout Duration                   `toml:"image_pull_progress_timeout" comment:"A pull that gets no byte for so long is given up; 0: never."`
	SyncFS          bool                       `toml:"image_pull_with_sync_fs" comment:"Accepted; berth's layers are always on the disk before they count."`
	StatsPeriod     int                        `toml:"stats_collect_period" comment:"Accepted, in seconds; berth counts what is on the disk when asked."`
	LocalPull       bool                       `toml:"use_local_image_pull" comment:"Accepted; there is one way to pull."`
	Pinned          map[string]string          `toml:"pinned_images" comment:"Images that the kubelet must not remove, by any name. The one called sandbox is accepted and not used: pods need no pause image."`
	Platforms       map[string]RuntimePlatform `toml:"runtime_platforms" comment:"Platform and snapshotter of a runtime, by its name."`
	Registry        Registry                   `toml:"registry" comment:"Registries."`
	Decryption      Decryption                 `toml:"image_decryption" comment:"Encrypted images."`
}

// RuntimePlatform is what images of a runtime are.
type RuntimePlatform struct {
	Platform    string `toml:"platform" comment:"As linux/amd64; empty: this machine's."`
	Snapshotter string `toml:"snapshotter" comment:"Name of the snapshotter; empty: the default."`
}

// Registry is how registries are reached.
type Registry struct {
	ConfigPath string                    `toml:"config_path" comment:"Folders with one folder for each registry host (hosts.toml and certificates), with colons between. Read anew when they change."`
	Headers    map[string][]string       `toml:"headers" comment:"Sent with every request."`
	Mirrors    map[string]Mirror         `toml:"mirrors,omitempty" comment:"Deprecated: use hosts.toml. Endpoints of a host; \"*\" is every other host."`
	Configs    map[string]RegistryConfig `toml:"configs,omitempty" comment:"Deprecated: use hosts.toml. TLS and credentials of a host."`
	Auths      map[string]RegistryAuth   `toml:"auths,omitempty" comment:"Deprecated: use berth.credential_files. Credentials of a host's URL."`
}

// Mirror is where else a host's images are.
type Mirror struct {
	Endpoint []string          `toml:"endpoint" comment:"URLs, asked in order before the host itself."`
	Rewrite  map[string]string `toml:"rewrite,omitempty" comment:"Not done by berth: accepted with a warning (k3s writes it)."`
}

// RegistryConfig is TLS and credential of a host.
type RegistryConfig struct {
	Auth RegistryAuth `toml:"auth" comment:"Credential."`
	TLS  RegistryTLS  `toml:"tls" comment:"Trust."`
}

// RegistryTLS says whom to trust.
type RegistryTLS struct {
	Insecure bool   `toml:"insecure_skip_verify" comment:"Take any certificate."`
	CA       string `toml:"ca_file" comment:"CA to trust (file)."`
	Cert     string `toml:"cert_file" comment:"Our certificate (file)."`
	Key      string `toml:"key_file" comment:"Its key (file)."`
}

// RegistryAuth is a credential.
type RegistryAuth struct {
	Username string `toml:"username" comment:"Name."`
	Password string `toml:"password" comment:"Password."`
	Auth     string `toml:"auth" comment:"Name and password with a colon between, in base64."`
	Token    string `toml:"identitytoken" comment:"Refresh token."`
}

// Decryption is about encrypted images.
type Decryption struct {
	KeyModel string `toml:"key_model" comment:"Accepted; encrypted images cannot be unpacked yet."`
}

// CRIRuntime is about pods and containers.
type CRIRuntime struct {
	SELinux           bool     `toml:"enable_selinux" comment:"Label processes and mounts."`
	SELinuxCategories int      `toml:"selinux_category_range" comment:"Categories to choose from."`
	MaxLogLine        int      `toml:"max_container_log_line_size" comment:"Longer lines are cut into parts, in bytes; 0 or less: never."`
	NoAppArmor        bool     `toml:"disable_apparmor" comment:"Apply no AppArmor profile."`
	RestrictOOMScore  bool     `toml:"restrict_oom_score_adj" comment:"Give no container a lower oom_score_adj than the daemon has. berth does that by itself where the host forbids more."`
	NoProcMount       bool     `toml:"disable_proc_mount" comment:"Accepted; ProcMount of a pod is honoured."`
	UnsetSeccomp      string   `toml:"unset_seccomp_profile" comment:"Profile of containers that ask for none: RuntimeDefault, unconfined or a file; empty: unconfined."`
	TolerateHugetlb   bool     `toml:"tolerate_missing_hugetlb_controller" comment:"Leave huge page limits out where the cgroup controller is missing."`
	NoHugetlb         bool     `toml:"disable_hugetlb_controller" comment:"Leave huge page limits out."`
	DeviceOwnership   bool     `toml:"device_ownership_from_security_context" comment:"Devices belong to the container's user and group."`
	IgnoreVolumes     bool     `toml:"ignore_image_defined_volumes" comment:"Make no anonymous volumes for an image's VOLUME."`
	NetNSInState      bool     `toml:"netns_mounts_under_state_dir" comment:"Pin network namespaces below state instead of /var/run/netns, where plugins in containers of their own look for them."`
	UnprivilegedPorts bool     `toml:"enable_unprivileged_ports" comment:"Pods may bind to ports below 1024 without a capability."`
	UnprivilegedICMP  bool     `toml:"enable_unprivileged_icmp" comment:"Pods may ping without a capability."`
	CDI               *bool    `toml:"enable_cdi,omitempty" comment:"Deprecated: CDI devices are always on."`
	CDISpecDirs       []string `toml:"cdi_spec_dirs" comment:"Where CDI devices are described."`
	DrainExecSync     Duration `toml:"drain_exec_sync_io_timeout" comment:"How long the output of a finished exec may stay open in children of it; 0: until the exec's own time-out, or its client leaves."`
	IgnoreWarnings    []string `toml:"ignore_deprecation_warnings" comment:"Deprecations that are not to show in the node's status."`
	StatsPeriod       string   `toml:"stats_collect_period" comment:"Accepted; stats are read when asked for."`
	StatsRetention    string   `toml:"stats_retention_period" comment:"Accepted."`
	CRIU              bool     `toml:"enable_criu" comment:"Allow checkpoints, if criu is there."`

	Containerd Handlers `toml:"containerd" comment:"Runtimes."`
	CNI        CNI      `toml:"cni" comment:"Networks of pods."`
}

// Handlers are the runtimes.
type Handlers struct {
	Default       string             `toml:"default_runtime_name" comment:"Of pods that name none."`
	IgnoreBlockIO bool               `toml:"ignore_blockio_not_enabled_errors" comment:"Leave block I/O classes out where there are none."`
	IgnoreRDT     bool               `toml:"ignore_rdt_not_enabled_errors" comment:"Leave RDT classes out where there are none."`
	Runtimes      map[string]Handler `toml:"runtimes" comment:"By the name that a RuntimeClass calls its handler."`
}

// Handler is one runtime. Its Options are turned into what a shim takes by
// ShimOptions.
type Handler struct {
	Type                string         `toml:"runtime_type" comment:"io.containerd.runc.v2 is berth-shim; others are programs containerd-shim-NAME-VERSION."`
	Path                string         `toml:"runtime_path" comment:"Absolute path of the shim, instead of the one that runtime_type finds."`
	PodAnnotations      []string       `toml:"pod_annotations" comment:"Patterns of the pod's annotations that the runtime shall see."`
	CtrAnnotations      []string       `toml:"container_annotations" comment:"Patterns of the container's annotations that the runtime shall see."`
	PrivilegedNoDevices bool           `toml:"privileged_without_host_devices" comment:"Privileged containers get no devices of the host."`
	PrivilegedAllowed   bool           `toml:"privileged_without_host_devices_all_devices_allowed" comment:"But may use any device they make."`
	CgroupWritable      bool           `toml:"cgroup_writable" comment:"Containers see their cgroup read-write (cgroup v2)."`
	BaseSpec            string         `toml:"base_runtime_spec" comment:"File of an OCI spec (JSON) that every container's starts from."`
	CNIConfDir          string         `toml:"cni_conf_dir" comment:"Other networks than those of cni.conf_dir."`
	CNIMax              int            `toml:"cni_max_conf_num" comment:"As cni.max_conf_num; 0: that."`
	Snapshotter         string         `toml:"snapshotter" comment:"Name of the snapshotter; empty: the default."`
	Sandboxer           string         `toml:"sandboxer" comment:"Accepted; berth makes the pod, also for shims that could."`
	NoPausePull         bool           `toml:"disable_pause_image_pull" comment:"Accepted; no pause image is ever pulled."`
	IOType              string         `toml:"io_type" comment:"Accepted; output goes berth's own way."`
	Options             map[string]any `toml:"options" comment:"For the shim. io.containerd.runc.v2: BinaryName, Root, SystemdCgroup, NoNewKeyring, NoPivotRoot, ShimCgroup, IoUid, IoGid, CriuImagePath, CriuWorkPath. Others: TypeUrl, ConfigPath and whatever the shim knows."`
}

// CNI is about networks of pods.
type CNI struct {
	BinDir      string   `toml:"bin_dir,omitempty" comment:"Deprecated: use bin_dirs."`
	BinDirs     []string `toml:"bin_dirs" comment:"Where the plugins are."`
	ConfDir     string   `toml:"conf_dir" comment:"Where the networks are described; watched."`
	Max         int      `toml:"max_conf_num" comment:"Networks that a pod joins, in the order of file names; 0: all."`
	Serial      bool     `toml:"setup_serially" comment:"Join one network after the other."`
	Template    string   `toml:"conf_template" comment:"File from which a network is made when the kubelet tells the pod CIDR."`
	IPPref      string   `toml:"ip_pref" comment:"Which address is the pod's first: ipv4, ipv6 or cni (as the plugin lists them); empty: ipv4."`
	OwnLoopback bool     `toml:"use_internal_loopback" comment:"Accepted; berth brings lo up without a plugin."`
}

// CRIServer is the streaming server.
type CRIServer struct {
	NoTCP       bool     `toml:"disable_tcp_service" comment:"Do not serve CRI itself over TCP."`
	Address     string   `toml:"stream_server_address" comment:"Where exec, attach and port-forward listen."`
	Port        string   `toml:"stream_server_port" comment:"Their port; \"0\": any."`
	IdleTimeout Duration `toml:"stream_idle_timeout" comment:"A stream on which nothing moves is closed after this."`
	TLS         bool     `toml:"enable_tls_streaming" comment:"Serve it with TLS."`
	KeyPair     KeyPair  `toml:"x509_key_pair_streaming" comment:"Certificate; without it one is made."`
}

// KeyPair is a certificate and its key.
type KeyPair struct {
	Cert string `toml:"tls_cert_file" comment:"Certificate (file)."`
	Key  string `toml:"tls_key_file" comment:"Its key (file)."`
}

func defaultImages() CRIImages {
	return CRIImages{
		Snapshotter: "overlayfs", NoAnnotations: true, Downloads: defaultDownloads, ProgressTimeout: seconds(300), StatsPeriod: 10,
		Pinned: map[string]string{}, Platforms: map[string]RuntimePlatform{},
		Registry:   Registry{ConfigPath: DefaultHostsDirs, Headers: map[string][]string{}},
		Decryption: Decryption{KeyModel: "node"},
	}
}

// DefaultHostsDirs are the folders of registry hosts: containerd's and Docker's,
// which is where people have them.
const DefaultHostsDirs = "/etc/berth/certs.d:/etc/containerd/certs.d:/etc/docker/certs.d"

func defaultRuntime() CRIRuntime {
	return CRIRuntime{
		SELinuxCategories: 1024, MaxLogLine: 16384, TolerateHugetlb: true, NoHugetlb: true, UnprivilegedPorts: true, UnprivilegedICMP: true,
		CDISpecDirs: []string{"/etc/cdi", "/var/run/cdi"}, IgnoreWarnings: []string{}, CRIU: true,
		Containerd: Handlers{Default: "runc", Runtimes: map[string]Handler{"runc": {
			Type: RuncType, Sandboxer: "podsandbox", PodAnnotations: []string{}, CtrAnnotations: []string{}, Options: map[string]any{},
		}}},
		CNI: CNI{BinDirs: []string{"/opt/cni/bin"}, ConfDir: "/etc/cni/net.d", Max: 1},
	}
}

func defaultServer() CRIServer {
	return CRIServer{NoTCP: true, Address: "127.0.0.1", Port: "0", IdleTimeout: seconds(4 * 3600)}
}
