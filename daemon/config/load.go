package config

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
)

// maxFile bounds a configuration file, in bytes.
const maxFile = 4 << 20

// Load reads a file and what it imports over the defaults. With path "" it is
// DefaultFile, if that is there; the defaults' imports are read in any case. A file
// that cannot be read as it was meant is an error that names the file, the line, the
// key and what is expected; keys that nobody knows are in Notes.
func Load(path string, o Override) (Config, error) {
	c := Default()
	r := reader{seen: map[string]bool{}}
	main := &node{table: map[string]*node{}}
	c.Written = Newest
	if path == "" {
		if _, err := os.Stat(DefaultFile); err == nil {
			path = DefaultFile
		}
	}
	imports, base := c.Imports, ""
	if path != "" {
		var err error
		if main, c.Written, err = r.file(path, Newest); err != nil {
			return c, err
		}
		base = path
		if path != DefaultFile { // a file of one's own imports only what it says
			imports, c.Imports = nil, []string{}
		}
	}
	if err := r.imports(main, imports, base, c.Written); err != nil {
		return c, err
	}
	c.Files = r.files
	if err := c.fill(main); err != nil {
		return c, err
	}
	c.Version, c.Plugins.Runtime.CNI.BinDir = Newest, "" // it is in BinDirs
	if err := c.noteIdle(main); err != nil {
		return c, err
	}
	c.apply(o)
	return c, c.validate()
}

// fill decodes the merged tree and notes what is odd in it.
func (c *Config) fill(n *node) error {
	c.Deprecations = deprecated(n)
	var d decoder
	d.structure(n, reflect.ValueOf(c).Elem())
	for i, u := range d.unknown {
		c.Notes = append(c.Notes, unknownKey(u, d.close[i]))
	}
	for _, name := range n.get("plugins").names() {
		if _, ok := c.Plugins.Others[name]; ok && !known(name) {
			c.Notes = append(c.Notes, fmt.Sprintf("%s: no part of berth has this name; the table is ignored", n.get("plugins", name).at))
		}
	}
	return d.err()
}

func (n *node) names() []string {
	if n == nil || n.table == nil {
		return nil
	}
	return n.keys()
}

// noteIdle names the keys that are set to something else than their default and have
// no effect: their meaning begins with "Accepted".
func (c *Config) noteIdle(n *node) error {
	values, err := c.values()
	if err != nil {
		return err
	}
	was := defaultValues()
	for _, k := range accepted() {
		for _, path := range slices.Sorted(maps.Keys(values)) {
			if !matches(k.Path, path) || values[path] == was[path] || idle[values[path]] {
				continue
			}
			at := n.find(path)
			if at == nil {
				continue
			}
			c.Notes = append(c.Notes, fmt.Sprintf("%s: has no effect: %s", at.at, strings.TrimPrefix(k.Meaning, "Accepted; ")))
		}
	}
	return nil
}

// accepted are the keys without effect.
var accepted = sync.OnceValue(func() []Key {
	return slices.DeleteFunc(Keys(), func(k Key) bool {
		return !strings.HasPrefix(k.Meaning, "Accepted") || strings.HasPrefix(k.Type, "table") && k.Default == ""
	})
})

var defaultValues = sync.OnceValue(func() map[string]string {
	v, err := Default().values()
	if err != nil {
		panic(err) // the defaults can be printed: a test says so
	}
	return v
})

// idle are values that ask for nothing.
var idle = map[string]bool{"": true, "false": true, "0": true, "[]": true, "podsandbox": true, "fifo": true}

// find walks down to a key as dotted writes it.
func (n *node) find(path string) *node {
	if n == nil || path == "" {
		return n
	}
	for _, k := range n.names() {
		d := dotted([]string{k})
		if path == d {
			return n.table[k]
		}
		if rest, ok := strings.CutPrefix(path, d+"."); ok {
			if got := n.table[k].find(rest); got != nil {
				return got
			}
		}
	}
	return nil
}

// advice is for keys that once were known.
var advice = map[string]string{
	"systemd_cgroup":             "set SystemdCgroup in the options of the runtime instead",
	"untrusted_workload_runtime": "make it a runtime of its own and use a RuntimeClass",
	"default_runtime":            "name it under runtimes and set default_runtime_name",
	"runtime_engine":             "set BinaryName in the options of the runtime",
	"runtime_root":               "set Root in the options of the runtime",
	"no_pivot":                   "set NoPivotRoot in the options of the runtime",
	"disable_cgroup":             "pods always have cgroups",
	"plugin_dir":                 "there are no plugins that are loaded as code",
	"subreaper":                  "there is nothing to set any more",
	"CriuPath":                   "criu is found on PATH",
}

func unknownKey(at origin, close string) string {
	last := at.key[strings.LastIndexByte(at.key, '.')+1:]
	text := fmt.Sprintf("%s: unknown key, ignored", at)
	switch {
	case advice[last] != "":
		text += ": " + advice[last]
	case close != "":
		text += fmt.Sprintf(": did you mean %q?", close)
	}
	return text
}

// reader reads files once each.
type reader struct {
	seen  map[string]bool
	files []string
}

// file reads and migrates one file.
func (r *reader) file(path string, most int) (*node, int, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, 0, err
	}
	r.seen[abs] = true
	r.files = append(r.files, path)
	info, err := os.Stat(path)
	if err == nil && (info.IsDir() || info.Size() > maxFile) {
		err = fmt.Errorf("it is not a file of at most %d MiB", maxFile>>20)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("read configuration %s: %w", path, err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, 0, fmt.Errorf("read configuration: %w", err)
	}
	n, err := parse(path, data)
	if err != nil {
		return nil, 0, fmt.Errorf("read configuration: %w", err)
	}
	v, err := version(n)
	if err != nil {
		return nil, 0, err
	}
	if v > most {
		return nil, 0, fmt.Errorf("%s: version %d is newer than that of the file that imports it (%d): write both for the same version", path, v, most)
	}
	n.take("version")
	migrate(n, v)
	return n, v, nil
}

// imports puts the files that n names over it. A file's own imports come before what
// the next one says.
func (r *reader) imports(n *node, patterns []string, base string, most int) error {
	if l := n.get("imports"); l != nil {
		patterns = nil
		for _, e := range l.list {
			s, ok := e.value.(string)
			if !ok {
				return fmt.Errorf("%s: want patterns of file names, not %s", e.at, kindOf(e))
			}
			patterns = append(patterns, s)
		}
	}
	for _, p := range patterns {
		if !filepath.IsAbs(p) {
			p = filepath.Join(filepath.Dir(base), p)
		}
		found, err := filepath.Glob(p)
		if err != nil {
			return fmt.Errorf("imports %q: %w", p, err)
		}
		if len(found) == 0 && !strings.ContainsAny(p, "*?[") {
			return fmt.Errorf("imports %q: %w", p, fs.ErrNotExist)
		}
		for _, f := range found {
			abs, err := filepath.Abs(f)
			if err != nil {
				return err
			}
			if r.seen[abs] {
				continue // a circle, or twice the same
			}
			over, v, err := r.file(f, most)
			if err != nil {
				return err
			}
			if err := r.imports(over, nil, f, v); err != nil {
				return err
			}
			n.overlay(over)
		}
	}
	return nil
}

// validate refuses what can be read but cannot be meant.
func (c *Config) validate() error {
	var all []error
	bad := func(key, format string, args ...any) { all = append(all, fmt.Errorf(key+": "+format, args...)) }
	if c.Root == c.State {
		bad("state", "%s is root as well; the two must differ", c.State)
	}
	for name, dir := range map[string]string{"root": c.Root, "state": c.State} {
		if !filepath.IsAbs(dir) {
			bad(name, "%q is not an absolute path", dir)
		}
	}
	if c.Plugins.GRPC.Address == "" {
		bad(pluginGRPC+".address", "the socket needs a path")
	}
	if c.OOMScore < -1000 || c.OOMScore > 1000 {
		bad("oom_score", "%d is not within -1000 and 1000", c.OOMScore)
	}
	if f := c.Debug.Format; f != "" && f != "text" && f != "json" {
		bad("debug.format", "%q: use text or json", f)
	}
	if p := c.Plugins.GC.PauseThreshold; p < 0 || p > 0.5 {
		bad("io.containerd.gc.v1.scheduler.pause_threshold", "%g is not within 0 and 0.5", p)
	}
	if p := c.Plugins.Metadata.Sharing; p != "shared" && p != "isolated" {
		bad("io.containerd.metadata.v1.bolt.content_sharing_policy", "%q: use shared or isolated", p)
	}
	if c.Plugins.TCP.Address != "" && (c.Plugins.TCP.Cert == "") != (c.Plugins.TCP.Key == "") {
		bad(pluginTCP, "tls_cert and tls_key belong together")
	}
	for _, e := range slices.Concat(c.Plugins.Shim.Env) {
		if !strings.Contains(e, "=") {
			bad("io.containerd.shim.v1.manager.env", "%q is not NAME=VALUE", e)
		}
	}
	for name, p := range c.ProxyPlugins {
		if !slices.Contains([]string{"snapshot", "content", "diff", "sandbox"}, p.Type) {
			bad("proxy_plugins."+name+".type", "%q: use snapshot, content, diff or sandbox", p.Type)
		}
		if p.Address == "" {
			bad("proxy_plugins."+name+".address", "the socket needs a path")
		}
	}
	return errors.Join(append(all, c.validateCRI()...)...)
}

func (c *Config) validateCRI() (all []error) {
	h := c.Plugins.Runtime.Containerd
	key := pluginRuntime + ".containerd"
	if _, ok := h.Runtimes[h.Default]; !ok {
		all = append(all, fmt.Errorf("%s.default_runtime_name: there is no runtime %q under runtimes", key, h.Default))
	}
	for name, r := range h.Runtimes {
		key := key + ".runtimes." + name
		if r.Type == "" {
			all = append(all, fmt.Errorf("%s: runtime_type is missing, as %q", key, RuncType))
		}
		if r.Sandboxer != "" && r.Sandboxer != "podsandbox" && r.Sandboxer != "shim" {
			all = append(all, fmt.Errorf("%s.sandboxer: %q: use podsandbox or shim", key, r.Sandboxer))
		}
		if r.IOType != "" && r.IOType != "fifo" && r.IOType != "streaming" {
			all = append(all, fmt.Errorf("%s.io_type: %q: use fifo or streaming", key, r.IOType))
		}
		if r.PrivilegedAllowed && !r.PrivilegedNoDevices {
			all = append(all, fmt.Errorf("%s: privileged_without_host_devices_all_devices_allowed needs privileged_without_host_devices", key))
		}
		if _, err := r.ShimOptions(); err != nil {
			all = append(all, fmt.Errorf("%s.options: %w", key, err))
		}
	}
	if p := c.Plugins.Runtime.CNI.IPPref; p != "" && p != "ipv4" && p != "ipv6" && p != "cni" {
		all = append(all, fmt.Errorf("%s.cni.ip_pref: %q: use ipv4, ipv6 or cni", pluginRuntime, p))
	}
	return all
}
