package task

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
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

	events "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/base/spec"
	"github.com/berthd/berth/engine/event"
	"github.com/berthd/berth/host/shim"
	"github.com/berthd/berth/store"
)

// box is a running container of busybox, without a daemon.
type box struct {
	t     *testing.T
	tasks *Tasks
	v     store.Scoped
	dir   string
	id    string
	shim  int
}

// shimBinary builds berth-shim, or takes that of BERTH_BIN.
var shimBinary = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv("BERTH_BIN"); dir != "" {
		return filepath.Join(dir, "berth-shim"), nil
	}
	dir, err := os.MkdirTemp("", "berth-shim-")
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-o", dir, "github.com/berthd/berth/cmd/berth-shim")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return filepath.Join(dir, "berth-shim"), nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if os.Getenv("BERTH_BIN") == "" {
		if bin, err := shimBinary(); err == nil {
			_ = os.RemoveAll(filepath.Dir(bin))
		}
	}
	os.Exit(code)
}

// newBox starts a container that sleeps. The runtime is the shim's type or path.
func newBox(t *testing.T, runtime string, change ...func(*CreateRequest, *string)) *box {
	t.Helper()
	bin, err := shimBinary()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "berth-task-")
	if err != nil {
		t.Fatal(err)
	}
	b := &box{t: t, dir: dir, id: "box" + strconv.Itoa(os.Getpid()) + filepath.Base(dir)[11:]}
	b.makeRoot()
	b.takeEvents(filepath.Join(dir, "d.sock.ttrpc"))
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	ctx, cancel := context.WithCancel(context.Background())
	st, err := store.Open(ctx, store.Config{Root: filepath.Join(dir, "root"), BootID: "boot", Publish: func([]store.Event) {}, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	launcher, err := shim.NewLauncher(shim.Config{
		GRPCAddress: filepath.Join(dir, "d.sock"), TTRPCAddress: filepath.Join(dir, "d.sock.ttrpc"), SocketDir: filepath.Join(dir, "s"),
		OwnBinary: bin, Version: "test", Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	shims := NewShims()
	b.tasks = New(ctx, Config{State: filepath.Join(dir, "state"), Work: filepath.Join(dir, "root"), Store: st, Exchange: event.New(), Launcher: launcher, Shims: shims, Log: log})
	b.v = st.In(store.Scope{Namespace: "default"})
	t.Cleanup(func() {
		end, stop := context.WithTimeout(context.Background(), 30*time.Second)
		defer stop()
		_ = b.tasks.Kill(end, b.v, b.id, "", 9, true)
		_, _ = b.tasks.Wait(end, b.v, b.id, "")
		if _, err := b.tasks.Delete(end, b.v, b.id); err != nil {
			t.Errorf("delete: %v", err)
		}
		if err := errors.Join(shims.Close(), b.tasks.Close(), st.Close()); err != nil {
			t.Error(err)
		}
		cancel()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	b.create(ctx, runtime, change...)
	return b
}

// takeEvents serves the socket without which stock shims do not live.
func (b *box) takeEvents(path string) {
	b.t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		b.t.Fatal(err)
	}
	s, err := ttrpc.NewServer()
	if err != nil {
		b.t.Fatal(err)
	}
	events.RegisterTTRPCEventsService(s, deaf{})
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(context.Background(), l) }()
	b.t.Cleanup(func() { _ = s.Close(); <-done })
}

type deaf struct{}

func (deaf) Forward(context.Context, *events.ForwardRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}

func (b *box) makeRoot() {
	b.t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		b.t.Fatal(err)
	}
	root := filepath.Join(b.dir, "rootfs")
	for _, d := range []string{"bin", "proc", "dev", "tmp", "etc"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			b.t.Fatal(err)
		}
	}
	data, err := os.ReadFile(busybox)
	if err == nil {
		err = os.WriteFile(filepath.Join(root, "bin/busybox"), data, 0o755)
	}
	for _, a := range strings.Fields("sh sleep cat echo true false stty nohup seq yes tty head wc ps kill test ls") {
		err = errors.Join(err, os.Symlink("busybox", filepath.Join(root, "bin", a)))
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

type object = map[string]any

func (b *box) process(tty bool, args ...string) store.Any {
	p, err := json.Marshal(object{
		"terminal": tty, "args": args, "cwd": "/", "env": []string{"PATH=/bin", "TERM=xterm"}, "user": object{"uid": 0, "gid": 0},
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return store.Any{TypeURL: "types.containerd.io/opencontainers/runtime-spec/1/Process", Value: p}
}

func (b *box) create(ctx context.Context, runtime string, change ...func(r *CreateRequest, script *string)) {
	b.t.Helper()
	r := CreateRequest{ID: b.id, Rootfs: []spec.Mount{{Type: "bind", Source: filepath.Join(b.dir, "rootfs"), Options: []string{"rbind", "rw"}}}}
	script := "sleep 100000"
	for _, fn := range change {
		fn(&r, &script)
	}
	var process any
	if err := json.Unmarshal(b.process(r.Terminal, "sh", "-c", script).Value, &process); err != nil {
		b.t.Fatal(err)
	}
	config, err := json.Marshal(object{
		"ociVersion": "1.2.0", "process": process, "root": object{"path": "rootfs"}, "hostname": "box",
		"mounts": []object{
			{"destination": "/proc", "type": "proc", "source": "proc"},
			{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []string{"nosuid", "mode=755"}},
			{"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}},
		},
		"linux": object{
			"cgroupsPath": "/" + b.id,
			"namespaces":  []object{{"type": "pid"}, {"type": "mount"}, {"type": "uts"}, {"type": "ipc"}, {"type": "network"}},
		},
	})
	if err != nil {
		b.t.Fatal(err)
	}
	err = b.v.Update(ctx, func(tx *store.Tx) error {
		_, err := tx.CreateContainer(store.Container{ID: b.id, Runtime: runtime, Spec: store.Any{TypeURL: "spec", Value: config}})
		return err
	})
	if err != nil {
		b.t.Fatal(err)
	}
	_, err = b.tasks.Create(ctx, b.v, r)
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := b.tasks.Start(ctx, b.v, b.id, ""); err != nil {
		b.t.Fatal(err)
	}
}

// run attends a command and returns what it wrote.
func (b *box) run(ctx context.Context, r Attended, args ...string) (stdout, stderr string, exit Exit, err error) {
	var out, errOut bytes.Buffer
	r.Process, r.Stdout = b.process(r.Terminal, args...), &out
	if !r.Terminal {
		r.Stderr = &errOut
	}
	exit, err = b.tasks.Attend(ctx, b.v, b.id, r)
	return out.String(), errOut.String(), exit, err
}

// execs counts the processes of the container beside its first.
func (b *box) execs() int {
	b.t.Helper()
	all, err := b.tasks.Pids(context.Background(), b.v, b.id)
	if err != nil {
		b.t.Fatal(err)
	}
	return len(all) - 1
}

func (b *box) shimFDs() int {
	b.t.Helper()
	_, api, err := b.tasks.find(context.Background(), "default", b.id)
	if err != nil {
		b.t.Fatal(err)
	}
	if b.shim == 0 {
		pid, _, err := api.Connect(context.Background())
		if err != nil {
			b.t.Fatal(err)
		}
		b.shim = int(pid)
	}
	return len(readDir(b.t, "/proc/"+strconv.Itoa(b.shim)+"/fd"))
}

func readDir(t *testing.T, dir string) []os.DirEntry {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return all
}

// level is what an exec may not leave behind.
type level struct{ fds, shimFDs, execs, files int }

func (b *box) level() level {
	return level{
		fds: len(readDir(b.t, "/proc/self/fd")), shimFDs: b.shimFDs(), execs: b.execs(), files: len(readDir(b.t, b.tasks.ioDir())),
	}
}

// settled waits for the level of before.
func (b *box) settled(before level) {
	b.t.Helper()
	var now level
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		now = b.level()
		if now.fds <= before.fds && now.shimFDs <= before.shimFDs && now.execs <= before.execs && now.files <= before.files {
			return
		}
	}
	b.t.Errorf("left behind: %+v, before it was %+v", now, before)
}

// runtimes are a shim that is handed its streams and one that finds FIFOs: stock
// containerd's.
func runtimes(t *testing.T, fn func(*testing.T, *box)) {
	for _, r := range shims(t) {
		t.Run(filepath.Base(r), func(t *testing.T) { fn(t, newBox(t, r)) })
	}
}

func shims(t *testing.T) []string {
	t.Helper()
	stock, err := exec.LookPath("containerd-shim-runc-v2")
	if err != nil {
		t.Fatal("containerd-shim-runc-v2 is not on PATH: run `make tools`")
	}
	return []string{shim.OwnRuntime, stock}
}

func TestAttend(t *testing.T) {
	runtimes(t, func(t *testing.T, b *box) {
		ctx := context.Background()
		if _, _, _, err := b.run(ctx, Attended{}, "true"); err != nil {
			t.Fatal(err) // opens what stays open
		}
		before := b.level()
		out, errOut, exit, err := b.run(ctx, Attended{}, "sh", "-c", "echo out; echo err >&2; exit 7")
		if err != nil || out != "out\n" || errOut != "err\n" || exit.Status != 7 {
			t.Errorf("got %q %q %d %v", out, errOut, exit.Status, err)
		}
		out, _, _, err = b.run(ctx, Attended{Stdin: strings.NewReader(strings.Repeat("x", 1<<20))}, "sh", "-c", "cat | wc -c")
		if err != nil || strings.TrimSpace(out) != "1048576" {
			t.Errorf("stdin: got %q %v", out, err)
		}
		out, _, _, err = b.run(ctx, Attended{}, "sh", "-c", "seq 1 200000")
		if err != nil || len(out) != 1288895 || !strings.HasSuffix(out, "\n200000\n") {
			t.Errorf("much output: %d bytes, %v", len(out), err)
		}
		if _, _, _, err = b.run(ctx, Attended{}, "/no/such/file"); err == nil || !strings.Contains(err.Error(), "no such file") {
			t.Errorf("a missing program: %v", err)
		}
		if _, _, exit, err = b.run(ctx, Attended{}, "sh", "-c", "kill -9 $$"); err != nil || exit.Status != 137 {
			t.Errorf("killed: %d %v", exit.Status, err)
		}
		b.settled(before)
	})
}

func TestAttendTerminal(t *testing.T) {
	runtimes(t, func(t *testing.T, b *box) {
		ctx := context.Background()
		if _, _, _, err := b.run(ctx, Attended{Terminal: true}, "true"); err != nil {
			t.Fatal(err)
		}
		before := b.level()
		sent := false
		in, write := io.Pipe()
		r := Attended{Terminal: true, Stdin: in, Resize: func(ctx context.Context) (Size, bool) {
			if sent {
				<-ctx.Done()
				return Size{}, false
			}
			sent = true
			return Size{Width: 123, Height: 45}, true
		}}
		go func() {
			time.Sleep(300 * time.Millisecond)
			_, _ = io.WriteString(write, "tty; stty size; exit 3\n")
		}()
		out, _, exit, err := b.run(ctx, r, "sh")
		_ = in.Close()
		if err != nil || exit.Status != 3 || !strings.Contains(out, "/dev/pts/") || !strings.Contains(out, "45 123") {
			t.Errorf("got %q, status %d, %v", out, exit.Status, err)
		}
		b.settled(before)
	})
}

// An exec whose client leaves ends, and what it started with it.
func TestAttendCancelled(t *testing.T) {
	b := newBox(t, shim.OwnRuntime)
	if _, _, _, err := b.run(context.Background(), Attended{}, "true"); err != nil {
		t.Fatal(err)
	}
	before := b.level()
	for _, tc := range []struct {
		name   string
		script string
		hangUp bool
		tty    bool
	}{
		{"killed with its children", "sleep 1000 & sleep 1000 & wait", false, false},
		{"hung up", "sleep 1000", true, false},
		{"ignores the hang-up", "trap '' HUP; sleep 1000", true, false},
		{"on a terminal", "sleep 1000", true, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
			defer cancel()
			begin := time.Now()
			_, _, _, err := b.run(ctx, Attended{HangUp: tc.hangUp, Terminal: tc.tty}, "sh", "-c", tc.script)
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("error %v", err)
			}
			if d := time.Since(begin); d > 6*time.Second {
				t.Errorf("it took %s", d)
			}
		})
	}
	// Children that ignored the hang-up were asked to stay.
	left, err := b.tasks.Pids(context.Background(), b.v, b.id)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range left[1:] {
		_ = syscall.Kill(int(p.Pid), syscall.SIGKILL)
	}
	b.settled(before)
}

// Children that keep the output open hold nobody up for longer than allowed.
func TestAttendLeftChildren(t *testing.T) {
	runtimes(t, func(t *testing.T, b *box) {
		ctx := context.Background()
		if _, _, _, err := b.run(ctx, Attended{}, "true"); err != nil {
			t.Fatal(err)
		}
		before := b.level()
		begin := time.Now()
		out, _, exit, err := b.run(ctx, Attended{Drain: 300 * time.Millisecond}, "sh", "-c", "seq 1 5000; sleep 3 & exit 4")
		if err != nil || exit.Status != 4 || !strings.HasSuffix(out, "\n5000\n") {
			t.Errorf("drain: %d bytes, status %d, %v", len(out), exit.Status, err)
		}
		if d := time.Since(begin); d > 2*time.Second {
			t.Errorf("drain took %s", d)
		}
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		out, _, exit, err = b.run(short, Attended{}, "sh", "-c", "echo done; sleep 3 &")
		if err != nil || exit.Status != 0 || out != "done\n" {
			t.Errorf("until the caller's time is over: %q, status %d, %v", out, exit.Status, err)
		}
		out, _, _, err = b.run(ctx, Attended{}, "sh", "-c", "echo one; (sleep 0.3; echo two) &")
		if err != nil || out != "one\ntwo\n" {
			t.Errorf("without a limit: %q, %v", out, err)
		}
		b.settled(before)
	})
}

// A reader that fails, or is slow, is the process's affair only.
func TestAttendReaders(t *testing.T) {
	b := newBox(t, shim.OwnRuntime)
	ctx := context.Background()
	if _, _, _, err := b.run(ctx, Attended{}, "true"); err != nil {
		t.Fatal(err)
	}
	before := b.level()
	_, err := b.tasks.Attend(ctx, b.v, b.id, Attended{Process: b.process(false, "yes"), Stdout: failing{}})
	if !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("a failing reader: %v", err)
	}
	slow := &slowWriter{}
	if _, err = b.tasks.Attend(ctx, b.v, b.id, Attended{Process: b.process(false, "seq", "1", "100000"), Stdout: slow}); err != nil || slow.n != 588895 {
		t.Errorf("a slow reader got %d bytes, %v", slow.n, err)
	}
	b.settled(before)
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

type slowWriter struct{ n int }

func (s *slowWriter) Write(p []byte) (int, error) {
	time.Sleep(5 * time.Millisecond)
	s.n += len(p)
	return len(p), nil
}

func TestAttendMany(t *testing.T) {
	b := newBox(t, shim.OwnRuntime)
	ctx := context.Background()
	if _, _, _, err := b.run(ctx, Attended{}, "true"); err != nil {
		t.Fatal(err)
	}
	before := b.level()
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			out, errOut, exit, err := b.run(ctx, Attended{}, "sh", "-c", fmt.Sprintf("echo out%d; echo err%d >&2; exit %d", i, i, i))
			if err != nil || out != fmt.Sprintf("out%d\n", i) || errOut != fmt.Sprintf("err%d\n", i) || int(exit.Status) != i {
				t.Errorf("%d: %q %q %d %v", i, out, errOut, exit.Status, err)
			}
		}()
	}
	wg.Wait()
	b.settled(before)
}

// The connection that handed over the streams is the exec's life: a daemon that
// dies takes it along.
func TestAttendDaemonDies(t *testing.T) {
	b := newBox(t, shim.OwnRuntime)
	ctx := context.Background()
	before := b.level()
	task, api, err := b.tasks.find(ctx, "default", b.id)
	if err != nil {
		t.Fatal(err)
	}
	r := Attended{Process: b.process(false, "sleep", "1000"), Stdout: io.Discard}
	a := &attending{tasks: b.tasks, v: b.v, cid: b.id, api: api, id: "orphan", r: r}
	if a.ends, err = b.tasks.openEnds(ctx, task, a.id, r); err != nil {
		t.Fatal(err)
	}
	if err := a.start(ctx); err != nil {
		t.Fatal(err)
	}
	if n := b.execs(); n != 1 {
		t.Fatalf("%d execs run", n)
	}
	a.ends.close() // all that the kernel does for a dead daemon
	b.settled(before)
	if _, err := b.tasks.Get(ctx, b.v, b.id, "orphan"); err == nil {
		t.Error("the shim still knows the exec")
	}
}
