package seccomp

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
)

func TestSupported(t *testing.T) {
	if !Supported() {
		t.Error("this kernel has no seccomp, which every kernel we know has")
	}
}

// TestDefault: the doors that were found open in other runtimes are shut, on the
// architecture that this runs on.
func TestDefault(t *testing.T) {
	p, err := Default([]string{"CAP_CHOWN"})
	if err != nil || p.DefaultAction == specs.ActAllow {
		t.Fatalf("%+v, %v", p, err)
	}
	for _, name := range []string{"io_uring_setup", "mount", "keyctl", "add_key", "bpf", "ptrace_", "kexec_load", "open_by_handle_at", "userfaultfd", "init_module"} {
		for _, s := range p.Syscalls {
			if s.Action == specs.ActAllow && len(s.Args) == 0 && slices.Contains(s.Names, name) {
				t.Errorf("%s is allowed", name)
			}
		}
	}
	allowed := func(family uint64) bool {
		for _, s := range p.Syscalls {
			if s.Action != specs.ActAllow || !slices.Contains(s.Names, "socket") {
				continue
			}
			all := true
			for _, a := range s.Args {
				all = all && a.Index == 0 && (a.Op == specs.OpNotEqual && a.Value != family || a.Op == specs.OpEqualTo && a.Value == family ||
					a.Op == specs.OpLessThan && family < a.Value || a.Op == specs.OpGreaterThan && family > a.Value || a.Op == specs.OpGreaterEqual && family >= a.Value)
			}
			if all {
				return true
			}
		}
		return false
	}
	if allowed(unix.AF_ALG) || allowed(unix.AF_VSOCK) || !allowed(unix.AF_INET) || !allowed(unix.AF_UNIX) {
		t.Errorf("sockets: AF_ALG %v, AF_VSOCK %v, AF_INET %v, AF_UNIX %v", allowed(unix.AF_ALG), allowed(unix.AF_VSOCK), allowed(unix.AF_INET), allowed(unix.AF_UNIX))
	}
}

func TestRead(t *testing.T) {
	dir := t.TempDir()
	good, fifo, huge := filepath.Join(dir, "good"), filepath.Join(dir, "fifo"), filepath.Join(dir, "huge")
	if err := errors.Join(os.WriteFile(good, []byte("{}"), 0o600), unix.Mkfifo(fifo, 0o600), os.WriteFile(huge, nil, 0o600), os.Truncate(huge, MaxProfile+1)); err != nil {
		t.Fatal(err)
	}
	if b, err := Read(good); err != nil || string(b) != "{}" {
		t.Errorf("%q, %v", b, err)
	}
	for _, f := range []string{dir, fifo, huge, dir + "/none"} {
		if _, err := Read(f); !errs.Is(err, errs.InvalidArgument) {
			t.Errorf("%s: %v", f, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ALLOW","archMap":[{"architecture":"SCMP_ARCH_X86_64"}],"syscalls":[{"names":["x"],"action":"SCMP_ACT_ERRNO","includes":{"minKernel":"4.8"}}]}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if p, err := Parse(text, nil); err == nil && p.DefaultAction == "" {
			t.Errorf("%q filters nothing", text)
		}
	})
}
