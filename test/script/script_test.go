// Package script runs the sessions in testdata against the built programs: each
// gets a daemon, a registry and a namespace of its own. See docs/testing.md.
package script

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/berthd/berth/test/lab"
)

// TestMain makes the programs of pty_test.go known to the sessions.
func TestMain(m *testing.M) { testscript.Main(m, map[string]func(){"pty": pty}) }

func TestScripts(t *testing.T) {
	var files []string
	for _, f := range sessions(t, "*.txt") {
		if !strings.HasPrefix(filepath.Base(f), "ctr-") { // TestCtr runs those, with each ctr
			files = append(files, f)
		}
	}
	l := lab.New(t)
	testscript.Run(t, params(t, l, registry(t, l), files))
}

func sessions(t *testing.T, glob string) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/" + glob)
	if err != nil || len(files) == 0 {
		t.Fatalf("no sessions %s: %v", glob, err)
	}
	return files
}

// registry starts a registry with the images of the sessions.
func registry(t *testing.T, l *lab.Lab) *lab.Registry {
	t.Helper()
	reg := l.Registry()
	images(t, l, reg.Host)
	return reg
}

// params are how sessions run: each with a daemon of its own. vars go into each
// session's environment.
func params(t *testing.T, l *lab.Lab, reg *lab.Registry, files []string, vars ...string) testscript.Params {
	t.Helper()
	return testscript.Params{
		Files:               files,
		RequireExplicitExec: true,
		Cmds:                map[string]func(*testscript.TestScript, bool, []string){"exits": exits, "shows": shows, "take": take, "fails": fails},
		Setup: func(env *testscript.Env) error {
			sub := &lab.Lab{T: inScript{env.T().(testing.TB), env}, Dir: env.WorkDir, Bin: l.Bin}
			if err := os.MkdirAll(filepath.Join(env.WorkDir, "tmp"), 0o755); err != nil {
				return err
			}
			args, err := configured(env.WorkDir)
			if err != nil {
				return err
			}
			d := sub.Daemon(args...)
			for _, kv := range slices.Concat(d.Environ(), []string{"REGISTRY=" + reg.Host, "BUSYBOX=" + reg.Host + "/library/busybox:latest"}, vars) {
				k, v, _ := strings.Cut(kv, "=")
				env.Setenv(k, v)
			}
			return nil
		},
	}
}

// configured has the daemon read the session's config.toml, if there is one; $WORK in
// it is the session's directory.
func configured(dir string) ([]string, error) {
	file := filepath.Join(dir, "config.toml")
	data, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return []string{"--config", file}, os.WriteFile(file, []byte(strings.ReplaceAll(string(data), "$WORK", dir)), 0o644)
}

// inScript is a session's test: what is to be cleaned up goes before the session's
// directory is removed.
type inScript struct {
	testing.TB
	env *testscript.Env
}

func (s inScript) Cleanup(fn func()) { s.env.Defer(fn) }

// exits is `exits STATUS PROGRAM ARG…`: the program must end with that status.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits STATUS PROGRAM [ARG ...]")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := "0"
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = strconv.Itoa(exit.ExitCode())
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if got != args[0] {
		ts.Fatalf("exit status %s, want %s", got, args[0])
	}
}

// images pushes what the sessions pull.
func images(t *testing.T, l *lab.Lab, host string) {
	t.Helper()
	oci := filepath.Join(l.Dir, "oci")
	if err := lab.Busybox(oci); err != nil {
		t.Fatal(err)
	}
	lab.Run(t, lab.Tool(t, "skopeo"), "copy", "-q", "--dest-tls-verify=false", "oci:"+oci+":busybox", fmt.Sprintf("docker://%s/library/busybox:latest", host))
}
