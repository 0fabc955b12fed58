package shim

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/berthd/berth/base/errs"
)

// OwnRuntime is the runtime type that berth-shim serves.
const OwnRuntime = "io.containerd.runc.v2"

// Find returns the path of a runtime's program.
func (l *Launcher) Find(runtime string) (string, error) { return l.binary(runtime) }

// binary finds the program of a runtime: an absolute path is taken as it is, a
// type a.b.NAME.VERSION is containerd-shim-NAME-VERSION on PATH or beside the
// daemon, and the runc type is our own shim.
func (l *Launcher) binary(runtime string) (string, error) {
	if runtime == OwnRuntime {
		return l.own()
	}
	if filepath.IsAbs(runtime) {
		if _, err := os.Stat(runtime); err != nil {
			return "", errs.New(errs.NotFound, "runtime %s: %v", runtime, err)
		}
		return runtime, nil
	}
	parts := strings.Split(runtime, ".")
	if strings.Contains(runtime, "/") || len(parts) < 2 || parts[len(parts)-1] == "" || parts[len(parts)-2] == "" {
		return "", errs.New(errs.InvalidArgument, "runtime %q: give a type such as %s or the absolute path of a shim", runtime, OwnRuntime)
	}
	name := "containerd-shim-" + parts[len(parts)-2] + "-" + parts[len(parts)-1]
	path, err := find(name)
	if err != nil {
		return "", errs.New(errs.NotFound, "runtime %q: its program %s is neither on PATH nor beside berth; install it, or use the runtime %s", runtime, name, OwnRuntime)
	}
	return path, nil
}

// own finds berth-shim: beside the daemon first, so that the two always match.
func (l *Launcher) own() (string, error) {
	if l.cfg.OwnBinary != "" {
		return l.cfg.OwnBinary, nil
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "berth-shim")
		if _, err := os.Stat(beside); err == nil {
			return beside, nil
		}
	}
	path, err := exec.LookPath("berth-shim")
	if err != nil {
		return "", errs.New(errs.NotFound, "berth-shim is neither beside berth nor on PATH: install both files in one directory")
	}
	return path, nil
}

func find(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return filepath.Abs(path)
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	beside := filepath.Join(filepath.Dir(self), name)
	_, err = os.Stat(beside)
	return beside, err
}
