package spec

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/pflag"
)

// build makes a configuration of a command line.
func build(t *testing.T, f Facts, args ...string) (*rspec.Spec, error) {
	t.Helper()
	var x Flags
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	x.Add(fs)
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	x.EntrypointSet = fs.Changed("entrypoint")
	f.ID, f.Namespace = strings.Repeat("0123456789abcdef", 4), "ns"
	if f.Args == nil && f.Image.Cmd == nil {
		f.Args = []string{"true"}
	}
	if f.Getenv == nil {
		f.Getenv = func(k string) (string, bool) { return "from outside", k == "OUT" }
	}
	f.Volume = func(name, at string) (string, error) { return "/volumes/" + name + at, nil }
	if f.MakeDir == nil {
		f.MakeDir = func(string) error { return nil }
	}
	return x.Build(f)
}

func must(t *testing.T, f Facts, args ...string) *rspec.Spec {
	t.Helper()
	s, err := build(t, f, args...)
	if err != nil {
		t.Fatalf("%v: %v", args, err)
	}
	return s
}

func TestCommand(t *testing.T) {
	image := ocispec.ImageConfig{Entrypoint: []string{"/entry"}, Cmd: []string{"a", "b"}}
	for _, c := range []struct {
		flags, args, want []string
	}{
		{nil, nil, []string{"/entry", "a", "b"}},
		{nil, []string{"c"}, []string{"/entry", "c"}},
		{[]string{"--entrypoint", "/other"}, nil, []string{"/other"}}, // Docker's rule: the image's command goes, too
		{[]string{"--entrypoint", "/other"}, []string{"c"}, []string{"/other", "c"}},
		{[]string{"--entrypoint", ""}, []string{"c"}, []string{"c"}},
	} {
		s := must(t, Facts{Image: image, Args: c.args}, c.flags...)
		if !reflect.DeepEqual(s.Process.Args, c.want) {
			t.Errorf("%v %v: %v, want %v", c.flags, c.args, s.Process.Args, c.want)
		}
	}
	if _, err := build(t, Facts{Image: ocispec.ImageConfig{Cmd: []string{}}, Args: []string{}}); err == nil || !strings.Contains(err.Error(), "give one after its name") {
		t.Errorf("nothing to run: %v", err)
	}
}

func TestEnvironment(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"one": "# no\nA=file one\nB=b\n\n", "two": "A=file two\nOUT\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := must(t, Facts{Image: ocispec.ImageConfig{Env: []string{"A=image", "I=i", "PATH=/p"}}, Home: "/h"},
		"-t", "--env-file", dir+"/one", "--env-file", dir+"/two", "-e", "C=c", "-e", "NOTHERE")
	want := []string{"PATH=/p", "TERM=xterm", "A=file two", "I=i", "B=b", "OUT=from outside", "C=c", "HOME=/h"}
	if !reflect.DeepEqual(s.Process.Env, want) {
		t.Errorf("%q, want %q", s.Process.Env, want)
	}
}

func TestMounts(t *testing.T) {
	var made []string
	s := must(t, Facts{MakeDir: func(d string) error { made = append(made, d); return nil }, Files: []rspec.Mount{{Destination: "/etc/hosts", Source: "ours"}}},
		"-v", "/no/such/dir:/data:ro,rshared", "-v", "/tmp:/etc/hosts", "-v", "kept:/k", "--tmpfs", "/t:size=1m", "--mount", "type=bind,src=/tmp,dst=/data/in,readonly", "--shm-size", "1m")
	at := map[string]rspec.Mount{}
	if i := slices.IndexFunc(s.Mounts, func(m rspec.Mount) bool { return m.Source == "/volumes/kept/k" }); i < 0 {
		t.Error("the named volume is not mounted")
	}
	for _, m := range s.Mounts {
		if _, twice := at[m.Destination]; twice {
			t.Errorf("two mounts at %s", m.Destination)
		}
		at[m.Destination] = m
	}
	for dest, want := range map[string]string{
		"/data": "rbind ro rshared", "/data/in": "rbind ro rprivate", "/t": "nosuid nodev noexec size=1m", "/etc/hosts": "rbind rw rprivate",
		"/dev/shm": "nosuid noexec nodev mode=1777 size=1048576",
	} {
		if got := strings.Join(at[dest].Options, " "); got != want {
			t.Errorf("%s: %q, want %q", dest, got, want)
		}
	}
	if !reflect.DeepEqual(made, []string{"/no/such/dir"}) || s.Linux.RootfsPropagation != "rshared" {
		t.Errorf("made %v, propagation %q", made, s.Linux.RootfsPropagation)
	}
	i := slices.IndexFunc(s.Mounts, func(m rspec.Mount) bool { return m.Destination == "/data" })
	j := slices.IndexFunc(s.Mounts, func(m rspec.Mount) bool { return m.Destination == "/data/in" })
	if i > j {
		t.Error("the inner mount is made before the outer one, which hides it")
	}
}

func TestCapabilities(t *testing.T) {
	has := func(s *rspec.Spec, c string) bool { return slices.Contains(s.Process.Capabilities.Bounding, c) }
	for _, c := range []struct {
		flags    []string
		in, out  string
		effectiv bool
	}{
		{nil, "CAP_CHOWN", "CAP_SYS_ADMIN", true},
		{[]string{"--cap-add", "sys_admin"}, "CAP_SYS_ADMIN", "CAP_SYS_TIME", true},
		{[]string{"--cap-drop", "all", "--cap-add", "CAP_KILL"}, "CAP_KILL", "CAP_CHOWN", true},
		{[]string{"--cap-add", "all", "--cap-drop", "kill"}, "CAP_SYS_ADMIN", "CAP_KILL", true},
		{[]string{"--privileged"}, "CAP_SYS_ADMIN", "CAP_NONE", true},
	} {
		s := must(t, Facts{}, c.flags...)
		if !has(s, c.in) || has(s, c.out) {
			t.Errorf("%v: %v", c.flags, s.Process.Capabilities.Bounding)
		}
		u := must(t, Facts{User: rspec.User{UID: 5}}, c.flags...)
		if len(u.Process.Capabilities.Effective) != 0 {
			t.Errorf("%v: a user that is not root has %v", c.flags, u.Process.Capabilities.Effective)
		}
	}
}

func TestConfinement(t *testing.T) {
	plain, free := must(t, Facts{}), must(t, Facts{}, "--privileged")
	if plain.Linux.Seccomp == nil || len(plain.Linux.MaskedPaths) == 0 || plain.Linux.Resources.Devices[0].Allow {
		t.Error("a plain container is not confined")
	}
	if free.Linux.Seccomp != nil || len(free.Linux.MaskedPaths) != 0 || !free.Linux.Resources.Devices[0].Allow || len(free.Linux.Devices) == 0 {
		t.Error("a privileged container is confined")
	}
	s := must(t, Facts{}, "--security-opt", "no-new-privileges", "--security-opt", "seccomp=unconfined", "--security-opt", "label=type:x_t")
	if !s.Process.NoNewPrivileges || s.Linux.Seccomp != nil || s.Process.SelinuxLabel != "system_u:system_r:x_t:s0" {
		t.Errorf("%v %v %q", s.Process.NoNewPrivileges, s.Linux.Seccomp, s.Process.SelinuxLabel)
	}
}

func TestResources(t *testing.T) {
	s := must(t, Facts{}, "-m", "64m", "--memory-swap", "-1", "--cpus", "1.5", "--pids-limit", "9", "--cpuset-cpus", "0", "--ulimit", "nofile=1:2", "--ulimit", "core=-1")
	r := s.Linux.Resources
	if *r.Memory.Limit != 64<<20 || *r.Memory.Swap != -1 || *r.CPU.Quota != 150_000 || *r.CPU.Period != 100_000 || *r.Pids.Limit != 9 || r.CPU.Cpus != "0" {
		b, _ := json.Marshal(r)
		t.Errorf("%s", b)
	}
	want := []rspec.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1, Hard: 2}, {Type: "RLIMIT_CORE", Soft: 1<<64 - 1, Hard: 1<<64 - 1}}
	if !reflect.DeepEqual(s.Process.Rlimits, want) {
		t.Errorf("%v", s.Process.Rlimits)
	}
}

func TestNamespaces(t *testing.T) {
	kinds := func(s *rspec.Spec) string {
		var out []string
		for _, n := range s.Linux.Namespaces {
			if n.Type != rspec.CgroupNamespace {
				out = append(out, string(n.Type)+n.Path)
			}
		}
		return strings.Join(out, " ")
	}
	for _, c := range []struct {
		f     Facts
		flags []string
		want  string
	}{
		{Facts{}, nil, "mount network pid ipc uts"},
		{Facts{Network: "host"}, nil, "mount pid ipc uts"},
		{Facts{Network: "/run/n"}, []string{"--pid", "host", "--uts", "host", "--ipc", "host"}, "mount network/run/n"},
		{Facts{Join: map[string]string{"pid": "/proc/7/ns/pid"}}, []string{"--pid", "container:x"}, "mount network pid/proc/7/ns/pid ipc uts"},
	} {
		if got := kinds(must(t, c.f, c.flags...)); got != c.want {
			t.Errorf("%v: %s, want %s", c.flags, got, c.want)
		}
	}
}

func TestBadInputSaysWhatIsWrong(t *testing.T) {
	for _, c := range []struct {
		flags []string
		want  string
	}{
		{[]string{"-m", "lots"}, "--memory"}, {[]string{"--cpus", "-1"}, "--cpus"}, {[]string{"--cpus", "1", "--cpu-quota", "5"}, "excludes"},
		{[]string{"-m", "2g", "--memory-swap", "1g"}, "--memory-swap"}, {[]string{"-v", "da ta:/x"}, "neither a path nor a name"}, {[]string{"-v", "/a:/"}, "below /"},
		{[]string{"-v", "/a:/b:odd"}, `"odd" is not known`}, {[]string{"-v", "/a:/b", "-v", "/c:/b"}, "two mounts"}, {[]string{"--tmpfs", "t"}, "absolute"},
		{[]string{"--mount", "type=nfs,target=/x"}, "bind and tmpfs"}, {[]string{"--mount", "target=/x,source=/no/such"}, "no such file"},
		{[]string{"--cap-add", "fly"}, "not known"}, {[]string{"--ulimit", "x=1"}, "NAME=SOFT"}, {[]string{"--ulimit", "nofile=2:1"}, "above"},
		{[]string{"--device", "/etc/passwd"}, "no device node"}, {[]string{"--device", "/dev/null:/x:q"}, "write /dev/x"}, {[]string{"--security-opt", "x"}, "not known"},
		{[]string{"--pid", "odd"}, "--pid=odd"}, {[]string{"-w", "rel"}, "absolute"}, {[]string{"-e", "=x"}, "no name"}, {[]string{"--sysctl", "=1"}, "no name"},
		{[]string{"--env-file", "/no/such"}, "no such file"}, {[]string{"--device-cgroup-rule", "c 1 r"}, "device rule"}, {[]string{"--shm-size", "x"}, "--shm-size"},
	} {
		if _, err := build(t, Facts{}, c.flags...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v, want %q", c.flags, err, c.want)
		}
	}
}

func TestBytes(t *testing.T) {
	for s, want := range map[string]int64{"0": 0, "10": 10, "1k": 1024, "1.5m": 3 << 19, "2GiB": 2 << 30, "3Gb": 3 << 30, "7B": 7} {
		if got, err := Bytes(s); err != nil || got != want {
			t.Errorf("Bytes(%q) = %d, %v; want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "m", "-1", "1x", "9e30", "99999999t"} {
		if n, err := Bytes(s); err == nil {
			t.Errorf("Bytes(%q) = %d, want an error", s, n)
		}
	}
}
