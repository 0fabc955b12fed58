package ops

import (
	"database/sql"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	_ "modernc.org/sqlite" // the database's own format

	"github.com/berthd/berth/test/lab"
)

// TestDoctor: what is wrong with a machine, its configuration and the daemon's memory
// is said with what to do, and none of it keeps the daemon from starting.
func TestDoctor(t *testing.T) {
	l := lab.New(t)
	file, debug := filepath.Join(l.Dir, "c.toml"), filepath.Join(l.Dir, "debug.sock")
	write(t, file, `version = 4
rot = 1
[plugins."io.containerd.server.v1.debug"]
address = %q
[plugins."io.containerd.cri.v1.runtime".cni]
conf_dir = %q
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.missing]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.missing.options]
BinaryName = "no-such-runtime"
`, debug, filepath.Join(l.Dir, "net.d"))
	d := l.Daemon("--config", file)
	d.MustCtr("namespaces", "create", "ns1")
	bad, good := blob(t, d, "bad"), blob(t, d, "good")
	if out := d.MustCtr("plugins", "inspect-runtime"); !strings.Contains(out, "io.containerd.runc.v2") {
		t.Error(out)
	}
	doctor := func(more ...string) string {
		t.Helper()
		out, err := d.Berth(append([]string{"doctor", "--config", file, "--root", d.Root, "--state", d.State}, more...)...)
		if err != nil && !strings.Contains(out, "fail ") {
			t.Errorf("%v\n%s", err, out)
		}
		return out
	}
	expectAll(t, doctor(),
		"ok    overlay: ", "ok    runtime runc: ", "ok    database: whole", "ok    shims: 0 containers", "c.toml:2: rot: unknown key, ignored: did you mean \"root\"?",
		"warn  runtime missing: no-such-runtime is not on PATH", "warn  pod network: ", "answers within")
	d.Stop(t)

	// A row that nobody can read.
	db, err := sql.Open("sqlite", filepath.Join(d.Root, "berth.db"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), `UPDATE content SET labels = '{' WHERE digest = ?`, bad); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	d.Start()
	if out := d.MustCtr("-n", "ns1", "content", "ls", "-q"); strings.TrimSpace(out) != good {
		t.Errorf("content %q", out)
	}
	expectAll(t, doctor(), `warn  database: a row is set aside: content "`+bad+`" of namespace "ns1"`)
	d.Stop(t)

	// A database that is none.
	if err := os.WriteFile(filepath.Join(d.Root, "berth.db"), []byte(strings.Repeat("noise", 5000)), 0o600); err != nil {
		t.Fatal(err)
	}
	d.Start()
	d.MustCtr("version")
	expectAll(t, doctor(), "warn  database: it was damaged and made anew", "damaged-2")
	if out, err := d.Berth("doctor", "--forget", "--config", file, "--root", d.Root, "--state", d.State); err == nil {
		t.Errorf("forget beside a running daemon: %s", out)
	}
	d.Stop(t)
	expectAll(t, doctor(), "fail  daemon: ", "start it: systemctl start berth")
	if out, err := d.Berth("doctor", "--forget", "--config", file, "--root", d.Root, "--state", d.State); err != nil {
		t.Error(err, out)
	}
	d.Start()
	expectAll(t, doctor(), "ok    database: whole")
}

func expectAll(t *testing.T, text string, all ...string) {
	t.Helper()
	for _, want := range all {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

// blob puts some content into a daemon, for good.
func blob(t *testing.T, d *lab.Daemon, text string) string {
	t.Helper()
	dg := digest.FromString(text).String()
	// Until it has its label nothing holds it, and a collection may take it.
	lab.Until(t, 20*time.Second, "the blob has its label", func() bool {
		cmd := exec.CommandContext(t.Context(), lab.Tool(t, "ctr"), "-n", "ns1", "content", "ingest", text)
		cmd.Env, cmd.Stdin = append(os.Environ(), d.Environ()...), strings.NewReader(text)
		if out, err := cmd.CombinedOutput(); err != nil && !strings.Contains(string(out), "already exists") {
			t.Fatalf("%v\n%s", err, out)
		}
		_, err := d.Ctr("-n", "ns1", "content", "label", dg, "containerd.io/gc.root=x")
		return err == nil
	})
	return dg
}
