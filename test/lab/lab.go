// Package lab sets up what tests of the built programs need: the programs, a
// daemon of its own, a registry, and at the end the proof that nothing is left.
package lab

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Lab is one test's place.
type Lab struct {
	T   testing.TB
	Dir string // everything of this test is below it
	Bin string // berth and berth-shim

	ledger *Ledger
}

// builds keeps where the programs are, by their build tags.
var builds struct {
	sync.Mutex
	dirs map[string]string
}

// Root is the repository's root directory.
func Root(t testing.TB) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// New makes a place for a test and builds the programs, once a process. With
// BERTH_BIN set, the programs in that directory are tested instead.
func New(t testing.TB) *Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root: it mounts and runs containers")
	}
	dir, err := os.MkdirTemp("", "berth-lab-")
	if err != nil {
		t.Fatal(err)
	}
	l := &Lab{T: t, Dir: dir, Bin: Build(t)}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("what the test made cannot be removed: %v", err)
		}
	})
	l.Ledger()
	return l
}

// Name makes a name that no other test on this machine uses, and owns it.
func (l *Lab) Name(name string) string {
	base := filepath.Base(l.Dir)
	n := name + "-" + strings.Trim(strings.ToLower(base[max(0, len(base)-8):]), "-_.")
	l.Ledger().Own(n)
	return n
}

// Build returns the directory of the programs.
func Build(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv("BERTH_BIN"); dir != "" {
		return dir
	}
	return BuildWith(t, "")
}

// BuildWith returns the directory of the programs as built with tags, once a
// process.
func BuildWith(t testing.TB, tags string) string {
	t.Helper()
	root := Root(t)
	builds.Lock()
	defer builds.Unlock()
	if dir := builds.dirs[tags]; dir != "" {
		return dir
	}
	forgetOldBuilds()
	dir, err := os.MkdirTemp("", fmt.Sprintf("%s%d-", buildPrefix, os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "build", "-tags", tags, "-o", dir+"/", "./cmd/...")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	if builds.dirs == nil {
		builds.dirs = map[string]string{}
	}
	builds.dirs[tags] = dir
	return dir
}

// buildPrefix begins the name of a directory of built programs; the pid of the test
// process follows.
const buildPrefix = "berth-bin-"

// forgetOldBuilds removes what test processes that have ended built: none of them
// can do that itself, for its last test does not know that it is the last.
func forgetOldBuilds() {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), buildPrefix+"*")) // the pattern is good
	for _, dir := range dirs {
		text, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), buildPrefix), "-")
		pid, err := strconv.Atoi(text)
		if err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			_ = os.RemoveAll(dir) // another may be at it too
		}
	}
}

// Tool finds a program that the test needs; that it is missing is a failure.
func Tool(t testing.TB, name string) string {
	t.Helper()
	p, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is not on PATH: run `make tools` (docs/testing.md)", name)
	}
	return p
}

// Process is a program that runs beside the test.
type Process struct {
	*exec.Cmd
	Log  *Buffer
	done chan struct{}
}

// running holds the pids of the programs that tests have under their own care.
var running sync.Map

// Buffer collects a program's output while it runs.
type Buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// Start runs a program until the test ends.
func Start(t testing.TB, cmd *exec.Cmd) *Process {
	t.Helper()
	p := &Process{Cmd: cmd, Log: &Buffer{}, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p.Log, p.Log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	running.Store(cmd.Process.Pid, true)
	// owner: Stop and Kill wait for done.
	go func() {
		_ = cmd.Wait() // a killed program's status says nothing
		running.Delete(cmd.Process.Pid)
		close(p.done)
	}()
	t.Cleanup(func() { p.Stop(t) })
	return p
}

// Done is closed when the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Stop asks the program to end and waits.
func (p *Process) Stop(t testing.TB) {
	t.Helper()
	_ = p.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		_ = p.Process.Kill()
		<-p.done
		t.Errorf("%s did not end within 20 s of SIGTERM; its output:\n%s", filepath.Base(p.Path), p.Log)
	}
}

// Kill ends the program as kill -9 does.
func (p *Process) Kill() {
	_ = p.Process.Kill()
	<-p.done
}

// Until waits for a condition; what names it in the failure.
func Until(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	end := time.Now().Add(limit)
	for !ok() {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %s", what, limit)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// FreePort returns a port of the loopback that nobody listens on now.
func FreePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// Run runs a program and returns its output; failure ends the test.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}
