// Command tools brings onto this machine what the tests need and berth does not:
// the peers, built from their modules at pinned versions, and Debian's packages.
// It does nothing where all of it is there. It prints the directory of the
// programs, to be put on PATH.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// packages are Debian's.
var packages = []string{
	"docker-registry", "skopeo", "umoci", "jq", "busybox-static", "iptables", "iproute2", "criu", "mmdebstrap", "zstd",
	"strace", "procps", "attr", "libcap2-bin", "socat", "e2fsprogs", "libseccomp-dev", "pkg-config", "gcc", "libc6-dev", "make", "apparmor",
}

// module is a program of a Go module.
type module struct {
	path string
	env  []string
	args []string
	as   map[string]string // installed name -> name that it must have
}

const (
	containerd = "github.com/containerd/containerd/v2/cmd/"
	gvisor     = "@v0.0.0-20260905035102-160fafc42237"
)

var modules = []module{
	{path: containerd + "containerd@v2.4.2"},
	{path: containerd + "ctr@v2.4.2"},
	{path: containerd + "containerd-shim-runc-v2@v2.4.2"},
	{path: "github.com/opencontainers/runc@v1.5.2", args: []string{"-tags", "seccomp"}, env: []string{"CGO_ENABLED=1"}},
	{path: "github.com/containernetworking/plugins/plugins/...@v1.9.1", env: []string{"CGO_ENABLED=0"}},
	{path: "gvisor.dev/gvisor/runsc" + gvisor, env: []string{"CGO_ENABLED=0"}},
	{path: "gvisor.dev/gvisor/shim" + gvisor, env: []string{"CGO_ENABLED=0"}, as: map[string]string{"shim": "containerd-shim-runsc-v1"}},
}

func main() {
	dir, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "tools:", err)
		os.Exit(1)
	}
	fmt.Println(dir)
}

func run() (string, error) {
	if os.Geteuid() != 0 {
		return "", errors.New("run this as root: it installs packages, and the tests mount and run containers")
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = "/root/.cache"
	}
	dir := filepath.Join(cache, "berth-tools")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if err := debian(); err != nil {
		return "", err
	}
	for _, m := range modules {
		if err := m.install(dir); err != nil {
			return "", err
		}
	}
	if err := newCriu(dir); err != nil {
		return "", err
	}
	if err := debianRoot(dir); err != nil {
		return "", err
	}
	return dir, oldCtr(dir)
}

// debianRoot makes the root file system of a Debian, which the tests' image has.
func debianRoot(dir string) error {
	to := filepath.Join(dir, "debian.tar")
	if _, err := os.Stat(to); err == nil {
		return nil
	}
	fmt.Fprintln(os.Stderr, "making a root file system of Debian bookworm")
	tmp := filepath.Join(dir, "debian-part.tar")
	if err := command("mmdebstrap", "--quiet", "--variant=minbase", "bookworm", tmp, "http://deb.debian.org/debian"); err != nil {
		return err
	}
	return os.Rename(tmp, to)
}

// newCriu brings a CRIU that knows this machine's kernel, where Debian's does not:
// version 3.17 takes the vDSO of a kernel 6.11 or later for broken. It is the next
// Debian's, run with its own libraries.
func newCriu(dir string) error {
	if exec.Command("criu", "check").Run() == nil {
		return nil
	}
	root, program := filepath.Join(dir, "criu-root"), filepath.Join(dir, "criu")
	if exec.Command(program, "check").Run() == nil {
		return nil
	}
	fmt.Fprintln(os.Stderr, "installing CRIU of Debian trixie below", root)
	if err := os.RemoveAll(root); err != nil {
		return err
	}
	if err := command("mmdebstrap", "--quiet", "--variant=essential", "--include=criu", "trixie", root, "http://deb.debian.org/debian"); err != nil {
		return err
	}
	script := fmt.Sprintf("#!/bin/sh\nexec %[1]s/lib64/ld-linux-x86-64.so.2 --library-path %[1]s/usr/lib/x86_64-linux-gnu %[1]s/usr/sbin/criu \"$@\"\n", root)
	if runtime.GOARCH == "arm64" {
		script = fmt.Sprintf("#!/bin/sh\nexec %[1]s/lib/ld-linux-aarch64.so.1 --library-path %[1]s/usr/lib/aarch64-linux-gnu %[1]s/usr/sbin/criu \"$@\"\n", root)
	}
	return os.WriteFile(program, []byte(script), 0o755)
}

// debian installs the packages that are missing.
func debian() error {
	var missing []string
	for _, p := range packages {
		out, err := exec.Command("dpkg-query", "-W", "-f", "${Status}", p).Output()
		if err != nil || !strings.Contains(string(out), "install ok installed") {
			missing = append(missing, p)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	fmt.Fprintln(os.Stderr, "installing Debian packages:", strings.Join(missing, " "))
	if err := command("apt-get", "update", "-qq"); err != nil {
		return err
	}
	// No service may start by itself: the tests start their own.
	policy := "/usr/sbin/policy-rc.d"
	if _, err := os.Stat(policy); errors.Is(err, os.ErrNotExist) {
		if err := os.WriteFile(policy, []byte("#!/bin/sh\nexit 101\n"), 0o755); err != nil {
			return err
		}
		defer func() { _ = os.Remove(policy) }()
	}
	return command("apt-get", append([]string{"install", "-y", "-qq", "--no-install-recommends"}, missing...)...)
}

func command(name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return nil
}

// install builds a module's programs unless a stamp says that this version is
// there.
func (m module) install(dir string) error {
	stamp := filepath.Join(dir, ".have-"+strings.NewReplacer("/", "_", "@", "_").Replace(m.path))
	if _, err := os.Stat(stamp); err == nil {
		return nil
	}
	fmt.Fprintln(os.Stderr, "building", m.path)
	cmd := exec.Command("go", append(append([]string{"install"}, m.args...), m.path)...)
	cmd.Dir = "/"
	cmd.Env = append(append(os.Environ(), "GOBIN="+dir, "GOFLAGS="), m.env...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go install %s: %w", m.path, err)
	}
	for from, to := range m.as {
		if err := os.Rename(filepath.Join(dir, from), filepath.Join(dir, to)); err != nil {
			return err
		}
	}
	return os.WriteFile(stamp, nil, 0o644)
}

// oldCtr takes ctr out of Debian's containerd package, without installing that:
// its daemon must not come onto the machine.
func oldCtr(dir string) error {
	to := filepath.Join(dir, "ctr-1.6")
	if _, err := os.Stat(to); err == nil {
		return nil
	}
	tmp, err := os.MkdirTemp("", "berth-deb-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	get := exec.Command("apt-get", "download", "-qq", "containerd")
	get.Dir = tmp
	if out, err := get.CombinedOutput(); err != nil {
		return fmt.Errorf("download Debian's containerd: %w: %s", err, out)
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "containerd_*.deb"))
	if err != nil {
		return err
	}
	if len(debs) != 1 {
		return fmt.Errorf("download Debian's containerd: found %v", debs)
	}
	if err := command("dpkg-deb", "-x", debs[0], filepath.Join(tmp, "x")); err != nil {
		return err
	}
	data, err := os.ReadFile(filepath.Join(tmp, "x/usr/bin/ctr"))
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o755)
}
