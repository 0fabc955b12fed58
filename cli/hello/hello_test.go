package hello

import (
	"bytes"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
)

func TestProgramRuns(t *testing.T) {
	const text = "hello\nwith two lines\n"
	p, err := Program(runtime.GOARCH, text)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "hello")
	if err := os.WriteFile(name, p, 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(name).CombinedOutput()
	if err != nil || string(out) != text {
		t.Errorf("it says %q (%v), want %q", out, err, text)
	}
}

func TestBothMachinesAreELF(t *testing.T) {
	for arch, want := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		p, err := Program(arch, "x")
		if err != nil {
			t.Fatal(err)
		}
		f, err := elf.NewFile(bytes.NewReader(p))
		if err != nil || f.Machine != want || len(f.Progs) != 1 {
			t.Errorf("%s: %+v, %v", arch, f, err)
		}
	}
	if _, err := Program("pdp11", "x"); err == nil {
		t.Error("no error for a machine that is not known")
	}
}
