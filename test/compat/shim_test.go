package compat

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berthd/berth/test/lab"
)

// berthRuntime is berth-shim under the name by which a stock containerd finds it.
const berthRuntime = "io.containerd.berth.v1"

// peer is a stock containerd that has berth-shim, and an image in its own namespace
// of containers.
func peerWithShim(t *testing.T) (l *lab.Lab, c *lab.Containerd, ctr func(...string) string, image string) {
	t.Helper()
	l = lab.New(t)
	bin := filepath.Join(l.Dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	lab.Run(t, "cp", filepath.Join(l.Bin, "berth-shim"), filepath.Join(bin, "containerd-shim-berth-v1"))
	c = l.Containerd(bin)
	// Cgroups are named for the namespace: tests run side by side.
	ns := fmt.Sprintf("peer-%d", os.Getpid())
	ctr = func(args ...string) string { return c.MustCtr(append([]string{"-n", ns}, args...)...) }
	return l, c, ctr, busybox(t, l, ctr)
}

// busybox pulls busybox from a registry of the lab.
func busybox(t *testing.T, l *lab.Lab, ctr func(...string) string) string {
	t.Helper()
	reg := l.Registry()
	oci := filepath.Join(l.Dir, "oci")
	if err := lab.Busybox(oci); err != nil {
		t.Fatal(err)
	}
	ref := reg.Host + "/library/busybox:latest"
	lab.Run(t, lab.Tool(t, "skopeo"), "copy", "-q", "--dest-tls-verify=false", "oci:"+oci+":busybox", "docker://"+ref)
	ctr("images", "pull", "--plain-http", ref)
	return ref
}

func want(t *testing.T, what, got, re string) {
	t.Helper()
	if !regexp.MustCompile(re).MatchString(got) {
		t.Errorf("%s: %q does not match %q", what, got, re)
	}
}

// loop counts in a file, and ends with status 3 on SIGTERM.
const loop = `trap "exit 3" TERM; i=0; while true; do i=$((i+1)); echo $i >/count; sleep 0.1; done`

// TestStockContainerdRunsOnBerthShim is the life of containers of a stock containerd
// whose runtime is berth-shim.
func TestStockContainerdRunsOnBerthShim(t *testing.T) {
	l, c, ctr, image := peerWithShim(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events := &lab.Buffer{}
	watch := exec.CommandContext(ctx, lab.Tool(t, "ctr"), "events")
	watch.Env = append(os.Environ(), "CONTAINERD_ADDRESS="+c.Socket)
	watch.Stdout = events
	if err := watch.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); _ = watch.Wait() }()

	want(t, "info", ctr("plugins", "inspect-runtime", "--runtime", berthRuntime), `"Name": "io.containerd.berth.v1"`)
	want(t, "run", ctr("run", "--rm", "--runtime", berthRuntime, image, "first", "echo", "by berth"), "by berth")
	ctr("run", "-d", "--runtime", berthRuntime, image, "one", "sh", "-c", loop)
	want(t, "exec", ctr("tasks", "exec", "--exec-id", "e", "one", "id", "-u"), "(?m)^0$")
	want(t, "ps", ctr("tasks", "ps", "one"), `\d+`)
	ctr("tasks", "pause", "one")
	want(t, "paused", ctr("tasks", "ls"), "PAUSED")
	ctr("tasks", "resume", "one")
	want(t, "metrics", ctr("tasks", "metrics", "one"), `pids.current|memory`)
	address, err := os.ReadFile(filepath.Join(c.Dir, "state/io.containerd.runtime.v2.task", fmt.Sprintf("peer-%d", os.Getpid()), "one", "address"))
	if err != nil {
		t.Fatal(err)
	}
	sock := strings.TrimPrefix(string(address), "unix://")
	want(t, "shim state", ctr("shim", "--id", "one", "--shim-address", sock, "state"), `"pid": \d+`)

	// containerd away, killed and started again: the container runs on. What ends
	// meanwhile containerd itself cleans up at its start: a shim without processes is
	// a leaked one to it.
	ctr("run", "-d", "--runtime", berthRuntime, image, "ends", "sh", "-c", "sleep 2; exit 5")
	c.Kill()
	time.Sleep(2500 * time.Millisecond)
	c.Start()
	want(t, "after a restart", ctr("tasks", "ls"), `(?m)^one\s+\d+\s+RUNNING`)
	lab.Until(t, 10*time.Second, "the other is gone", func() bool { return !strings.Contains(ctr("tasks", "ls"), "ends") })
	ctr("containers", "delete", "ends")
	lab.Until(t, 20*time.Second, "its shim is gone", func() bool { return len(shims(t, l)) == 1 })

	// CRIU, and back.
	image2 := "checkpoint:1"
	ctr("containers", "checkpoint", "--image", "--rw", "--task", "one", image2)
	ctr("tasks", "kill", "one")
	lab.Until(t, 10*time.Second, "the container has ended", func() bool { return strings.Contains(ctr("tasks", "ls"), "STOPPED") })
	want(t, "status", ctr("tasks", "delete", "one"), "non-zero exit code 3")
	ctr("containers", "delete", "one")
	ctr("containers", "restore", "--rw", "--live", "two", image2)
	want(t, "restored", ctr("tasks", "ls"), `(?m)^two\s+\d+\s+RUNNING`)
	ctr("tasks", "delete", "-f", "two")
	ctr("containers", "delete", "two")
	ctr("images", "rm", image2)
	lab.Until(t, 10*time.Second, "events", func() bool { return strings.Contains(events.String(), `/tasks/delete {"container_id":"first"`) })
	for _, e := range []string{"/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete", "/tasks/exec-added", "/tasks/exec-started", "/tasks/paused", "/tasks/resumed"} {
		want(t, "events", events.String(), e+` \{"container_id"`)
	}
	noShims(t, l)
}

// TestStockContainerdSandboxesOnBerthShim: the sandbox API, from the daemon that has
// it, on berth's shim.
func TestStockContainerdSandboxesOnBerthShim(t *testing.T) {
	l, _, ctr, image := peerWithShim(t)
	spec := filepath.Join(l.Dir, "spec.json")
	if err := os.WriteFile(spec, []byte(ctr("oci", "spec")), 0o600); err != nil {
		t.Fatal(err)
	}
	ctr("sandboxes", "run", "--runtime", berthRuntime, spec, "box")
	want(t, "list", ctr("sandboxes", "ls"), `(?m)^box`)
	want(t, "run", ctr("run", "--rm", "--runtime", berthRuntime, "--sandbox", "box", image, "in", "echo", "inside"), "inside")
	ctr("sandboxes", "rm", "box")
	noShims(t, l)
}

// TestShimOfDeadContainer: the shim is killed; containerd cleans up by its delete
// command, and nothing stays.
func TestShimOfDeadContainer(t *testing.T) {
	l, _, ctr, image := peerWithShim(t)
	ctr("run", "-d", "--runtime", berthRuntime, image, "orphan", "sleep", "1000")
	pids := shims(t, l)
	if len(pids) != 1 {
		t.Fatalf("shims: %v", pids)
	}
	if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	lab.Until(t, 20*time.Second, "the task is gone", func() bool { return !strings.Contains(ctr("tasks", "ls"), "orphan") })
	ctr("containers", "delete", "orphan")
	noShims(t, l)
}

// TestStockShimUnderBerth: berth runs containers with containerd's own shim, by its
// path and by a name of its own.
func TestStockShimUnderBerth(t *testing.T) {
	l := lab.New(t)
	stock := lab.Tool(t, "containerd-shim-runc-v2")
	bin := filepath.Join(l.Dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(stock, filepath.Join(bin, "containerd-shim-stock-v2")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	d := l.Daemon()
	ns := fmt.Sprintf("stock-%d", os.Getpid())
	ctr := func(args ...string) string { return d.MustCtr(append([]string{"-n", ns}, args...)...) }
	image := busybox(t, l, ctr)
	for _, runtime := range []string{stock, "io.containerd.stock.v2"} {
		want(t, "run", ctr("run", "--rm", "--runtime", runtime, image, "first", "echo", "by containerd's shim"), "by containerd's shim")
		ctr("run", "-d", "--runtime", runtime, image, "one", "sh", "-c", loop)
		want(t, "exec", ctr("tasks", "exec", "--exec-id", "e", "one", "id", "-u"), "(?m)^0$")
		ctr("tasks", "pause", "one")
		want(t, "paused", ctr("tasks", "ls"), "PAUSED")
		ctr("tasks", "resume", "one")
		want(t, "metrics", ctr("tasks", "metrics", "one"), `pids.current|memory`)
		ctr("run", "-d", "--runtime", runtime, image, "ends", "sh", "-c", "sleep 2; exit 5")
		d.Kill()
		time.Sleep(2500 * time.Millisecond)
		d.Start()
		want(t, "after a restart", ctr("tasks", "ls"), `(?m)^one\s+\d+\s+RUNNING`)
		lab.Until(t, 10*time.Second, "the other has ended", func() bool { return strings.Contains(ctr("tasks", "ls"), "STOPPED") })
		want(t, "status", ctr("tasks", "delete", "ends"), "non-zero exit code 5")
		ctr("tasks", "kill", "one")
		lab.Until(t, 10*time.Second, "the container has ended", func() bool { return strings.Contains(ctr("tasks", "ls"), "STOPPED") })
		want(t, "status", ctr("tasks", "delete", "one"), "non-zero exit code 3")
		ctr("containers", "delete", "one", "ends")
		lab.Until(t, 10*time.Second, "no shim is left", func() bool { return len(processes(t, "containerd-shim-", ns)) == 0 })
	}
}

// shims are the pids of the lab's berth-shims under the name that containerd knows.
func shims(t *testing.T, l *lab.Lab) []int {
	t.Helper()
	return processes(t, filepath.Join(l.Dir, "bin", "containerd-shim-berth-v1"), "")
}

func noShims(t *testing.T, l *lab.Lab) {
	t.Helper()
	lab.Until(t, 10*time.Second, "no shim is left", func() bool { return len(shims(t, l)) == 0 })
}

// processes are those whose command line has both texts.
func processes(t *testing.T, a, b string) []int {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var out []int
	for _, f := range all {
		text, err := os.ReadFile(f)
		if err != nil || !strings.Contains(string(text), a) || !strings.Contains(string(text), b) {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(f, "/proc/%d/", &pid); err == nil && pid != os.Getpid() {
			out = append(out, pid)
		}
	}
	return out
}
