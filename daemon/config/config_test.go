package config

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"google.golang.org/protobuf/proto"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestGolden reads files as installers write them, in every version, and compares
// what they mean, what is complained about, and that the print reads back to the same.
func TestGolden(t *testing.T) {
	for _, name := range []string{"package1", "kubeadm2", "dockerd2", "kind3", "four"} {
		t.Run(name, func(t *testing.T) {
			c, err := Load("testdata/"+name+".toml", Override{})
			if err != nil {
				t.Fatal(err)
			}
			out, err := c.Print(false)
			if err != nil {
				t.Fatal(err)
			}
			again := filepath.Join(t.TempDir(), "again.toml")
			if err := os.WriteFile(again, bytes.Replace(out, []byte("kind3.d/"), []byte("none.d/"), 1), 0o600); err != nil {
				t.Fatal(err)
			}
			c2, err := Load(again, Override{})
			if err != nil {
				t.Fatalf("the print does not read back: %v\n%s", err, out)
			}
			if c2.Notes = slices.DeleteFunc(c2.Notes, func(n string) bool { return strings.Contains(n, "has no effect") }); len(c2.Notes) > 0 {
				t.Errorf("the print reads back with complaints: %q", c2.Notes)
			}
			out2, err := c2.Print(false)
			if err != nil {
				t.Fatal(err)
			}
			if want := bytes.Replace(out, []byte("kind3.d/"), []byte("none.d/"), 1); !bytes.Equal(want, out2) {
				t.Errorf("the print reads back to something else:\n%s\n%s", want, out2)
			}
			golden(t, name, difference(t, c))
		})
	}
}

// difference is what a print says otherwise than the defaults, with its complaints.
func difference(t *testing.T, c Config) string {
	t.Helper()
	changed, err := Changes(Default(), c)
	if err != nil {
		t.Fatal(err)
	}
	is, err := c.values()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, k := range changed {
		b.WriteString(k + " = " + is[k] + "\n")
	}
	for _, n := range c.Notes {
		b.WriteString("note: " + n + "\n")
	}
	for _, d := range c.Deprecations {
		b.WriteString("deprecated: " + d.ID + ": " + d.Message + "\n")
	}
	return b.String()
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := "testdata/" + name + ".golden"
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", file, got, want)
	}
}

func load(t *testing.T, text string) (Config, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "c.toml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return Load(file, Override{})
}

// TestWrong: what cannot be meant fails with the place, the key and what is expected.
func TestWrong(t *testing.T) {
	const rt = `[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.`
	for _, c := range []struct{ name, text, want string }{
		{"syntax", "version = 4\nroot = \n", "c.toml:2:"},
		{"type", "version = 4\n\noom_score = \"-999\"\n", `c.toml:3: oom_score: want an integer, not the string "-999"`},
		{"two at once", "version = 4\nroot = 1\nstate = true\n", "c.toml:3: state: want a string, not the boolean true"},
		{"list", "version = 4\ndisabled_plugins = \"cri\"\n", "c.toml:2: disabled_plugins: want an array"},
		{"element", "version = 4\nrequired_plugins = [\"a\", 3]\n", "c.toml:2: required_plugins"},
		{"table", "version = 4\nplugins = 3\n", "c.toml:2: plugins: want a table"},
		{"old name in message", "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nmax_concurrent_downloads = \"3\"\n",
			`c.toml:3: plugins."io.containerd.grpc.v1.cri".max_concurrent_downloads: want an integer`},
		{"duration", "version = 4\n[timeouts]\n\"io.containerd.timeout.shim.load\" = \"5\"\n", `want a time such as "10s"`},
		{"future", "version = 5\n", "version 5 is newer than 4"},
		{"version type", "version = \"3\"\n", "want a number from 1 to 4"},
		{"same dirs", "version = 4\nroot = \"/a\"\nstate = \"/a\"\n", "the two must differ"},
		{"relative", "version = 4\nroot = \"a\"\n", "not an absolute path"},
		{"no such default", "version = 4\n[plugins.\"io.containerd.cri.v1.runtime\".containerd]\ndefault_runtime_name = \"kata\"\n", `no runtime "kata"`},
		{"no type", "version = 4\n" + rt + "kata]\nsnapshotter = \"native\"\n", "runtime_type is missing"},
		{"option", "version = 4\n" + rt + "runc.options]\nSystemdCgroups = true\n", "did you mean SystemdCgroup?"},
		{"proxy", "version = 4\n[proxy_plugins.x]\ntype = \"snapshots\"\naddress = \"/x\"\n", "use snapshot, content, diff or sandbox"},
		{"import", "version = 4\nimports = [\"no.toml\"]\n", "no.toml"},
		{"gc", "version = 4\n[plugins.\"io.containerd.gc.v1.scheduler\"]\npause_threshold = 0.9\n", "not within 0 and 0.5"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := load(t, c.text)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// TestUnknown: a key that nobody knows is named with its line and never fails.
func TestUnknown(t *testing.T) {
	c, err := load(t, "version = 3\nrot = \"/x\"\n\n[plugins.\"io.containerd.cri.v1.runtime\"]\nenable_selinx = true\n[plugins.\"io.example.v1.thing\"]\na = 1\n")
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Join(c.Notes, "\n")
	for _, want := range []string{
		`c.toml:2: rot: unknown key, ignored: did you mean "root"?`,
		`c.toml:5: plugins."io.containerd.cri.v1.runtime".enable_selinx: unknown key, ignored: did you mean "enable_selinux"?`,
		`c.toml:6: plugins."io.example.v1.thing": no part of berth has this name`,
	} {
		if !strings.Contains(all, want) {
			t.Errorf("notes %q lack %q", all, want)
		}
	}
	out, err := c.Print(true)
	if err != nil || !strings.Contains(string(out), "'io.example.v1.thing'") {
		t.Errorf("the print dropped another's table: %v\n%s", err, out)
	}
}

// TestEveryMistypedKeyIsReported mutates each key of the default configuration.
func TestEveryMistypedKeyIsReported(t *testing.T) {
	out, err := Default().Print(false)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(out), "\n")
	tried := 0
	for i, l := range lines {
		key, _, ok := strings.Cut(l, " = ")
		if !ok || strings.ContainsAny(key, "'[") || strings.HasSuffix(strings.TrimSpace(key), "_") {
			continue
		}
		name := strings.TrimSpace(key)
		if slices.Contains([]string{"version", "imports"}, name) {
			continue
		}
		tried++
		mutated := slices.Clone(lines)
		mutated[i] = strings.Replace(l, name, name+"x", 1)
		c, err := load(t, strings.Join(mutated, "\n"))
		text := strings.Join(c.Notes, "\n")
		if err != nil {
			text += err.Error()
		}
		if !strings.Contains(text, name+"x") {
			t.Errorf("line %d, %q: nobody complains: %q", i+1, mutated[i], text)
		}
	}
	if tried < 100 {
		t.Errorf("only %d keys were tried", tried)
	}
}

func TestImports(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const runtimes = `[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.`
	write("main.toml", `version = 3
imports = ["*.toml"]
oom_score = -1
disabled_plugins = ["a"]
[proxy_plugins.p]
type = "snapshot"
address = "/a"
capabilities = ["x"]
[plugins."io.containerd.cri.v1.runtime"]
enable_selinux = true
device_ownership_from_security_context = true
`+runtimes+`y]
runtime_type = "io.containerd.y.v2"
pod_annotations = ["m"]
`)
	write("1.toml", `version = 2
imports = ["main.toml"]
oom_score = -2
disabled_plugins = ["a", "b"]
[proxy_plugins.p]
type = "snapshot"
address = "/b"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.y]
pod_annotations = ["n"]
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.x]
runtime_type = "io.containerd.x.v2"
`)
	write("2.toml", "version = 3\noom_score = -3\n[plugins.\"io.containerd.cri.v1.runtime\"]\nenable_selinux = false\n")
	c, err := Load(filepath.Join(dir, "main.toml"), Override{})
	if err != nil {
		t.Fatal(err)
	}
	r := c.Plugins.Runtime
	y := r.Containerd.Runtimes["y"]
	switch {
	case c.OOMScore != -3, !slices.Equal(c.Disabled, []string{"a", "b"}), len(c.Files) != 3:
		t.Errorf("top: %+v", c)
	case c.ProxyPlugins["p"].Address != "/b" || len(c.ProxyPlugins["p"].Capabilities) != 0:
		t.Errorf("an entry of proxy_plugins comes whole from the newer file: %+v", c.ProxyPlugins)
	case r.SELinux, !r.DeviceOwnership:
		t.Errorf("a plugin's keys merge one by one: %+v", r)
	case y.Type != "io.containerd.y.v2" || !slices.Equal(y.PodAnnotations, []string{"n"}):
		t.Errorf("runtime y: %+v", y)
	case len(r.Containerd.Runtimes) != 3:
		t.Errorf("runtimes: %+v", r.Containerd.Runtimes)
	}
	write("3.toml", "version = 4\n")
	if _, err := Load(filepath.Join(dir, "main.toml"), Override{}); err == nil || !strings.Contains(err.Error(), "newer than that of the file that imports it") {
		t.Errorf("a drop-in of a newer version: %v", err)
	}
}

func TestOverride(t *testing.T) {
	c, err := Load("testdata/kubeadm2.toml", Override{Root: "/r", State: "/s", Address: "/x.sock", Level: "error"})
	if err != nil {
		t.Fatal(err)
	}
	if c.Root != "/r" || c.State != "/s" || c.Plugins.GRPC.Address != "/x.sock" || c.TTRPCAddress() != "/x.sock.ttrpc" || c.Debug.Level != "error" {
		t.Errorf("%+v", c)
	}
}

func TestShimOptions(t *testing.T) {
	c, err := Load("testdata/four.toml", Override{})
	if err != nil {
		t.Fatal(err)
	}
	opts, err := c.Plugins.Runtime.Containerd.Runtimes["gvisor"].ShimOptions()
	var o runtimeoptions.Options
	if err != nil || opts.TypeURL != "runtimeoptions.v1.Options" || proto.Unmarshal(opts.Value, &o) != nil {
		t.Fatalf("%v %v", opts, err)
	}
	if o.TypeUrl != "io.containerd.runsc.v1.options" || o.ConfigPath != "/etc/runsc.toml" || strings.TrimSpace(string(o.ConfigBody)) != "binary_name = '/opt/runsc'" {
		t.Errorf("%v", &o)
	}
	opts, err = Handler{Type: RuncType, Options: map[string]any{"SystemdCgroup": true, "BinaryName": "crun", "IoUid": int64(7)}}.ShimOptions()
	var r options.Options
	if err != nil || opts.TypeURL != "containerd.runc.v1.Options" || proto.Unmarshal(opts.Value, &r) != nil {
		t.Fatalf("%v %v", opts, err)
	}
	if !r.SystemdCgroup || r.BinaryName != "crun" || r.IoUid != 7 {
		t.Errorf("%v", &r)
	}
}

// TestContainerdsOwn: what `containerd config default` prints is understood to the
// last key, and means the same here.
func TestContainerdsOwn(t *testing.T) {
	bin, err := exec.LookPath("containerd")
	if err != nil {
		t.Fatalf("containerd is needed here, as a peer: make tools: %v", err)
	}
	out, err := exec.Command(bin, "config", "default").Output()
	if err != nil {
		t.Fatal(err)
	}
	c, err := load(t, strings.Replace(string(out), "/etc/containerd/conf.d/*.toml", "none.d/*.toml", 1))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Notes) > 0 || len(c.Deprecations) > 0 {
		t.Errorf("complaints: %q %v", c.Notes, c.Deprecations)
	}
	def := Default()
	for what, eq := range map[string]bool{
		"gc":       c.Plugins.GC == def.Plugins.GC,
		"timeouts": reflect.DeepEqual(c.Timeouts, def.Timeouts),
		"nri":      reflect.DeepEqual(c.Plugins.NRI, def.Plugins.NRI),
		"server":   c.Plugins.CRI == def.Plugins.CRI,
		"cni":      reflect.DeepEqual(c.Plugins.Runtime.CNI, def.Plugins.Runtime.CNI),
		"verifier": c.Plugins.Verifier == def.Plugins.Verifier,
		"metadata": c.Plugins.Metadata == def.Plugins.Metadata,
		"restart":  c.Plugins.Restart == def.Plugins.Restart,
	} {
		if !eq {
			t.Errorf("the default of %s is another than containerd's", what)
		}
	}
}

// TestMigratesAsContainerd: containerd understands an old file and what we migrate it to
// in the same way.
func TestMigratesAsContainerd(t *testing.T) {
	bin, err := exec.LookPath("containerd")
	if err != nil {
		t.Fatalf("containerd is needed here, as a peer: make tools: %v", err)
	}
	dump := func(file string) map[string]string {
		t.Helper()
		out, err := exec.Command(bin, "-c", file, "config", "dump").Output()
		if err != nil {
			t.Fatal(err)
		}
		n, err := parse(file, out)
		if err != nil {
			t.Fatal(err)
		}
		m := map[string]string{}
		n.flatten(nil, m)
		return m
	}
	// Where we keep more of what the old file meant than containerd does.
	better := []string{`plugins."io.containerd.server.v1.grpc-tcp".max_recv_message_size`, `plugins."io.containerd.shim.v1.manager".env`}
	for _, name := range []string{"package1", "kubeadm2", "dockerd2", "four"} {
		old := "testdata/" + name + ".toml"
		out, err := Migrate(old)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "new.toml")
		if err := os.WriteFile(file, out, 0o600); err != nil {
			t.Fatal(err)
		}
		was, is := dump(old), dump(file)
		for k, v := range was {
			if is[k] != v && !slices.Contains(better, k) {
				t.Errorf("%s: %s is %q, and was %q", name, k, is[k], v)
			}
		}
	}
}

func TestDefaultPrintReadsBack(t *testing.T) {
	out, err := Default().Print(true)
	if err != nil {
		t.Fatal(err)
	}
	c, err := load(t, strings.Replace(string(out), "/etc/berth/conf.d/*.toml", "none.d/*.toml", 1))
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	c.Imports, c.Files, c.Written = Default().Imports, nil, 0
	if len(c.Notes) > 0 || !reflect.DeepEqual(c, Default()) {
		t.Errorf("%q\n%+v\n%+v", c.Notes, c, Default())
	}
}

// TestEveryKeyIsExplained: the comments are the documentation.
func TestEveryKeyIsExplained(t *testing.T) {
	var walk func(reflect.Type, string)
	walk = func(typ reflect.Type, at string) {
		for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice || typ.Kind() == reflect.Map {
			typ = typ.Elem()
		}
		if typ.Kind() != reflect.Struct {
			return
		}
		for i := range typ.NumField() {
			f := typ.Field(i)
			if f.Tag.Get("toml") == "-" {
				continue
			}
			if c := f.Tag.Get("comment"); !strings.HasSuffix(c, ".") {
				t.Errorf("%s.%s: its comment %q is no sentence", at, f.Name, c)
			}
			walk(f.Type, at+"."+f.Name)
		}
	}
	walk(reflect.TypeFor[Config](), "Config")
}

func FuzzLoad(f *testing.F) {
	for _, name := range []string{"package1", "kubeadm2", "dockerd2", "kind3", "four"} {
		data, err := os.ReadFile("testdata/" + name + ".toml")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		n, err := parse("fuzz", data)
		if err != nil {
			return
		}
		v, err := version(n)
		if err != nil {
			return
		}
		n.take("version")
		migrate(n, v)
		c := Default()
		if c.fill(n) != nil {
			return
		}
		if out, err := c.Print(false); err != nil || len(out) == 0 {
			t.Errorf("what was read cannot be printed: %v", err)
		}
	})
}

func TestDurationText(t *testing.T) {
	if b, _ := Duration(90 * time.Second).MarshalText(); string(b) != "1m30s" {
		t.Errorf("%s", b)
	}
}

// TestMigrate: the migrated text means what the old one did, and says no more.
func TestMigrate(t *testing.T) {
	for _, name := range []string{"package1", "kubeadm2", "dockerd2", "four"} {
		out, err := Migrate("testdata/" + name + ".toml")
		if err != nil {
			t.Fatal(err)
		}
		was, err := Load("testdata/"+name+".toml", Override{})
		if err != nil {
			t.Fatal(err)
		}
		is, err := load(t, string(out))
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		if diff, err := Changes(was, is); err != nil || len(diff) > 0 {
			t.Errorf("%s: %v %v\n%s", name, diff, err, out)
		}
		if n := strings.Count(string(out), "\n"); n > 100 {
			t.Errorf("%s: %d lines:\n%s", name, n, out)
		}
	}
}

// TestDocumentation holds docs/configuration.md to the keys that there are.
func TestDocumentation(t *testing.T) {
	const file, begin = "../../docs/configuration.md", "<!-- keys: written by go test ./daemon/config -update -->\n"
	doc, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	head, old, ok := strings.Cut(string(doc), begin)
	if !ok {
		t.Fatalf("%s has no line %q", file, begin)
	}
	var b strings.Builder
	for _, k := range Keys() {
		if strings.HasPrefix(k.Type, "table") && k.Default == "" {
			b.WriteString("\n\n### `" + k.Path + "`\n\n" + k.Meaning + "\n")
			continue
		}
		b.WriteString("\n- `" + k.Path[strings.LastIndexByte(k.Path, '.')+1:] + "` (" + k.Type + ", default `" + k.Default + "`): " + k.Meaning)
	}
	text := "\n" + strings.TrimSpace(strings.ReplaceAll(b.String(), "\n\n\n", "\n\n")) + "\n"
	if *update {
		if err := os.WriteFile(file, []byte(head+begin+text), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if old != text {
		t.Errorf("%s is behind the code: go test ./daemon/config -update", file)
	}
}
