// Package ops runs the daemon as those do who operate it: with configuration files,
// reloads, metrics and a debug socket.
package ops

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/lab"
)

// fetch asks a daemon's HTTP socket.
func fetch(t *testing.T, network, address, path string) string {
	t.Helper()
	c := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, address)
		},
	}}
	resp, err := c.Get("http://x" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s %v\n%s", path, resp.Status, err, b)
	}
	return string(b)
}

func write(t *testing.T, file, format string, args ...any) {
	t.Helper()
	if err := os.WriteFile(file, fmt.Appendf(nil, format, args...), 0o600); err != nil {
		t.Fatal(err)
	}
}

// notices is systemd's end of sd_notify.
func notices(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func expect(t *testing.T, c *net.UnixConn, want string) {
	t.Helper()
	b := make([]byte, 4096)
	for {
		if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := c.Read(b)
		if err != nil {
			t.Fatalf("systemd is not told %s: %v", want, err)
		}
		if strings.Contains(string(b[:n]), want) {
			return
		}
	}
}

func TestOperations(t *testing.T) {
	l := lab.New(t)
	file, debug := filepath.Join(l.Dir, "c.toml"), filepath.Join(l.Dir, "debug.sock")
	const text = `version = 2
disabled_plugins = ["cri", "io.containerd.grpc.v1.cri"]
%s
[grpc]
gid = 1
[debug]
level = %q
address = %q
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/opt/x"
typo = 1
`
	write(t, file, text, "", "info", debug)
	systemd := notices(t, filepath.Join(l.Dir, "notify"))
	t.Setenv("NOTIFY_SOCKET", filepath.Join(l.Dir, "notify"))
	t.Setenv("WATCHDOG_USEC", "2000000")
	d := l.Daemon("--config", file)
	expect(t, systemd, "READY=1")
	expect(t, systemd, "WATCHDOG=1")
	expect(t, systemd, "WATCHDOG=1")

	t.Run("socket", func(t *testing.T) {
		info, err := os.Stat(d.Socket)
		if err != nil {
			t.Fatal(err)
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok || st.Gid != 1 || info.Mode().Perm() != 0o660 {
			t.Errorf("group %d mode %v", st.Gid, info.Mode())
		}
	})
	t.Run("complaints", func(t *testing.T) {
		if log := d.Log.String(); !strings.Contains(log, "c.toml:11: ") || !strings.Contains(log, "cni.typo: unknown key") {
			t.Error(log)
		}
		if out := d.MustCtr("deprecations", "list"); !strings.Contains(out, "io.containerd.deprecation/cri-cni-bin-dir") {
			t.Error(out)
		}
	})
	t.Run("metrics", func(t *testing.T) {
		d.MustCtr("namespaces", "ls")
		page := fetch(t, "unix", debug, "/v1/metrics")
		for _, want := range []string{`grpc_server_handled_total{grpc_code="OK",grpc_method="List",grpc_service="containerd.services.namespaces.v1.Namespaces"`,
			"containerd_gc_collections_total", "berth_store_commit_seconds_count", "process_resident_memory_bytes"} {
			if !strings.Contains(page, want) {
				t.Errorf("no %q", want)
			}
		}
		if got := fetch(t, "unix", debug, "/healthz"); got != "ok\n" {
			t.Error(got)
		}
		if out, err := d.Ctr("pprof", "--debug-socket", debug, "goroutines"); err != nil {
			t.Error(err, out)
		}
	})
	t.Run("reload", func(t *testing.T) {
		write(t, file, text, "oom_score = 5", "debug", debug)
		reload(t, d, `after_restart=[oom_score]`)
		if log := d.Log.String(); !strings.Contains(log, "taken=[debug.level]") {
			t.Error(log)
		}
		expect(t, systemd, "RELOADING=1")
		write(t, file, text, "oom_score = true", "debug", debug)
		reload(t, d, "the configuration stays as it was")
		d.MustCtr("version")
	})
	d.Stop(t)
	if code := d.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit status %d\n%s", code, d.Log)
	}
	expect(t, systemd, "STOPPING=1")
}

// reload sends SIGHUP and waits for the answer in the log.
func reload(t *testing.T, d *lab.Daemon, want string) {
	t.Helper()
	if err := d.Cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	lab.Until(t, 10*time.Second, want, func() bool { return strings.Contains(d.Log.String(), want) })
}

// TestNewRuntimes: a runtime that is added while the daemon runs can be used after
// SIGHUP, as GPU installers expect; those that are there are not touched.
func TestNewRuntimes(t *testing.T) {
	l := lab.New(t)
	file := filepath.Join(l.Dir, "c.toml")
	const text = `version = 3
[plugins."io.containerd.cri.v1.runtime".cni]
conf_dir = %q
`
	const more = `[plugins."io.containerd.cri.v1.runtime".containerd]
default_runtime_name = "nvidia"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.nvidia]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.nvidia.options]
BinaryName = %q
`
	write(t, file, text, filepath.Join(l.Dir, "net.d"))
	d := l.Daemon("--config", file)
	conn, err := d.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	names := func() string {
		t.Helper()
		r, err := cri.NewRuntimeServiceClient(conn).Status(t.Context(), &cri.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, h := range r.GetRuntimeHandlers() {
			all = append(all, h.GetName())
		}
		return strings.Join(all, " ")
	}
	if got := strings.Fields(names()); len(got) != 1 || got[0] != "runc" {
		t.Fatalf("%q", got)
	}
	write(t, file, text+more, filepath.Join(l.Dir, "net.d"), lab.Tool(t, "runc"))
	reload(t, d, "configuration is read again")
	if got := names(); !strings.Contains(got, "nvidia") || !strings.Contains(got, "runc") {
		t.Errorf("%q", got)
	}
	if log := d.Log.String(); !strings.Contains(log, "after_restart=[]") {
		t.Error(log)
	}
}

// TestRequired: a daemon does not start without a part that its configuration insists
// on, and says which.
func TestRequired(t *testing.T) {
	l := lab.New(t)
	file := filepath.Join(l.Dir, "c.toml")
	write(t, file, `version = 4
required_plugins = ["io.containerd.snapshotter.v1.stargz", "io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.native"]
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.monitor.container.v1.restart"]
[proxy_plugins.stargz]
type = "snapshot"
address = "/run/no.sock"
`)
	cmd := exec.CommandContext(t.Context(), filepath.Join(l.Bin, "berth"), "daemon", "-c", file, "--root", l.Dir+"/r", "--state", l.Dir+"/s", "--address", l.Dir+"/b.sock")
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Fatal("it started")
	}
	expectAll(t, string(out), "required_plugins: io.containerd.snapshotter.v1.stargz is not there: ", "required_plugins: there is no part io.containerd.grpc.v1.cri")
	if strings.Contains(string(out), "native is not there") {
		t.Error(string(out))
	}
}
