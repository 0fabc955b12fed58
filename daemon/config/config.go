// Package config reads the daemon's configuration: TOML in any version that
// containerd ever had, brought to the newest and mapped onto typed structs. It owns
// the meaning and the default of every key; the `comment` of a field is its
// documentation everywhere. It never acts on what it read: daemon/wire.go does.
package config

import (
	"slices"
	"strings"
)

// The places of a daemon that is told nothing.
const (
	DefaultFile    = "/etc/berth/config.toml"
	DefaultRoot    = "/var/lib/berth"
	DefaultState   = "/run/berth"
	DefaultAddress = "/run/berth/berth.sock"
)

// Newest is the version that is written; older ones are read.
const Newest = 4

// Config is what the daemon is told.
type Config struct {
	Version  int      `toml:"version" comment:"Of this file's format. 1 to 4 are read, as containerd defines them; a file without it is version 1."`
	Root     string   `toml:"root" comment:"Directory of what lasts: images, snapshots, the database."`
	State    string   `toml:"state" comment:"Directory of what a reboot may clear: bundles, sockets."`
	Temp     string   `toml:"temp" comment:"Directory for temporary files; empty: the system's."`
	Imports  []string `toml:"imports" comment:"More files, as patterns relative to this one, read in the order of names; a later one wins."`
	Disabled []string `toml:"disabled_plugins" comment:"Parts that shall not run, as \"io.containerd.grpc.v1.cri\"."`
	Required []string `toml:"required_plugins" comment:"Parts without which the daemon shall not start."`
	OOMScore int      `toml:"oom_score" comment:"oom_score_adj of the daemon, -1000 to 1000; 0 leaves it. Where the host forbids it, berth says so and goes on."`
	Debug    Debug    `toml:"debug" comment:"Logging."`
	Cgroup   Cgroup   `toml:"cgroup" comment:"Where the daemon itself runs."`

	Timeouts         map[string]Duration        `toml:"timeouts" comment:"Limits of waiting, by name. io.containerd.timeout.shim.load and .task.state are obeyed, the others accepted."`
	StreamProcessors map[string]StreamProcessor `toml:"stream_processors" comment:"Accepted; encrypted images cannot be unpacked yet. Programs that turn layers of one media type into another."`
	ProxyPlugins     map[string]ProxyPlugin     `toml:"proxy_plugins" comment:"Accepted, and shown as missing: parts that other daemons serve on their sockets cannot be used yet."`
	Berth            Berth                      `toml:"berth" comment:"What containerd has no key for."`
	Plugins          Plugins                    `toml:"plugins" comment:"Settings of the parts, under containerd's names for them."`

	// What reading found, apart from values.
	Files        []string      `toml:"-"` // that were read, the main one first
	Written      int           `toml:"-"` // version of the main file
	Notes        []string      `toml:"-"` // keys that nobody knows, and what else deserves a warning
	Deprecations []Deprecation `toml:"-"`
}

// Debug is about logs.
type Debug struct {
	Level   string `toml:"level" comment:"trace, debug, info, warn or error; empty: info. Taken over on SIGHUP."`
	Format  string `toml:"format" comment:"text or json; empty: text."`
	TraceID bool   `toml:"log_trace_id" comment:"Accepted; berth's log lines carry no trace ids."`
}

// Cgroup is about the daemon's own cgroup.
type Cgroup struct {
	Path string `toml:"path" comment:"Cgroup that the daemon moves into; empty: it stays where it was started."`
}

// StreamProcessor is one program of layers.
type StreamProcessor struct {
	Accepts []string `toml:"accepts" comment:"Media types that it reads."`
	Returns string   `toml:"returns" comment:"Media type that it writes."`
	Path    string   `toml:"path" comment:"Program."`
	Args    []string `toml:"args" comment:"Its arguments."`
	Env     []string `toml:"env" comment:"Its environment, as NAME=VALUE."`
}

// ProxyPlugin is a part behind a socket.
type ProxyPlugin struct {
	Type         string            `toml:"type" comment:"snapshot, content, diff or sandbox."`
	Address      string            `toml:"address" comment:"Path of its socket."`
	Platform     string            `toml:"platform" comment:"Platform that it serves; empty: this machine's."`
	Exports      map[string]string `toml:"exports" comment:"What clients are told of it, as root."`
	Capabilities []string          `toml:"capabilities" comment:"What it can do, as \"remap-ids\"."`
}

// Berth holds berth's own keys.
type Berth struct {
	Shim            string   `toml:"shim" comment:"Path of berth-shim; empty: beside berth, else on PATH."`
	GCInterval      Duration `toml:"gc_interval" comment:"Garbage is collected at least this often, for leases and labels that expire."`
	CredentialFiles []string `toml:"credential_files" comment:"docker config.json or containers auth.json files, asked in order when a pull brings no credential of its own."`
	BuiltinCNI      bool     `toml:"builtin_cni" comment:"Do in this process what the stock CNI plugins bridge, ptp, host-local, portmap and loopback do, where a network's configuration has nothing else in it."`
	CNIGCInterval   Duration `toml:"cni_gc_interval" comment:"How often CNI plugins are told which attachments are alive, so that leaked addresses come back; 0: only at start."`
}

// Default is the configuration without a file.
func Default() Config {
	return Config{
		Version: Newest, Root: DefaultRoot, State: DefaultState, Imports: []string{"/etc/berth/conf.d/*.toml"},
		Disabled: []string{}, Required: []string{},
		Timeouts: map[string]Duration{
			TimeoutShimLoad: seconds(5), TimeoutShimCleanup: seconds(5), TimeoutShimShutdown: seconds(3), TimeoutTaskState: seconds(2),
			TimeoutShimStats: seconds(2), TimeoutDeferCleanup: seconds(60), timeoutBoltOpen: 0,
		},
		StreamProcessors: map[string]StreamProcessor{},
		ProxyPlugins:     map[string]ProxyPlugin{},
		Berth:            Berth{GCInterval: seconds(300), CredentialFiles: []string{}, BuiltinCNI: true, CNIGCInterval: seconds(300)},
		Plugins:          defaultPlugins(),
	}
}

// The names under [timeouts].
const (
	timeoutBoltOpen     = "io.containerd.timeout.bolt.open" // accepted: berth has no bolt database
	TimeoutShimLoad     = "io.containerd.timeout.shim.load"
	TimeoutShimCleanup  = "io.containerd.timeout.shim.cleanup"
	TimeoutShimShutdown = "io.containerd.timeout.shim.shutdown"
	TimeoutTaskState    = "io.containerd.timeout.task.state"
	TimeoutShimStats    = "io.containerd.timeout.metrics.shimstats"
	TimeoutDeferCleanup = "io.containerd.timeout.cri.defercleanup"
)

// Off tells whether a part is disabled by name, as "io.containerd.grpc.v1.cri".
func (c Config) Off(plugin string) bool { return slices.Contains(c.Disabled, plugin) }

// TTRPCAddress is where shims send their events.
func (c Config) TTRPCAddress() string {
	if a := c.Plugins.TTRPC.Address; a != "" {
		return a
	}
	return c.Plugins.GRPC.Address + ".ttrpc"
}

// HostsDirs is the list of registry host folders for clients of containerd's API:
// transfer's own setting, else that of CRI, else the default.
func (c Config) HostsDirs() string {
	if p := c.Plugins.Transfer.ConfigPath; p != "" {
		return p
	}
	if p := c.Plugins.Images.Registry.ConfigPath; p != "" {
		return p
	}
	return DefaultHostsDirs // "" is what containerd writes for its default
}

// Downloads is how many layers one pull fetches at once: transfer's number if it is not
// the default, else that of the CRI images.
func (c Config) Downloads() int {
	if t := c.Plugins.Transfer.Downloads; t != defaultDownloads {
		return t
	}
	return c.Plugins.Images.Downloads
}

// Override is what the command line says above the files; empty means not said.
type Override struct{ Root, State, Address, Level string }

func (c *Config) apply(o Override) {
	set := func(to *string, v string) {
		if v != "" {
			*to = v
		}
	}
	set(&c.Root, o.Root)
	set(&c.State, o.State)
	set(&c.Debug.Level, o.Level)
	if o.Address != "" {
		// The place of the second socket follows the first, also where a file names it:
		// two daemons from one file must not meet there.
		c.Plugins.GRPC.Address, c.Plugins.TTRPC.Address = strings.TrimPrefix(o.Address, "unix://"), ""
	}
}
