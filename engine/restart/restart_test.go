package restart

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	eventsv1 "github.com/containerd/containerd/api/events"
	"google.golang.org/protobuf/proto"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/label"
	"github.com/berthd/berth/engine/event"
	"github.com/berthd/berth/engine/gc"
	"github.com/berthd/berth/engine/task"
	"github.com/berthd/berth/host/shim"
	"github.com/berthd/berth/store"
)

func TestPolicy(t *testing.T) {
	for in, want := range map[string]Policy{
		"": {"always", 0}, "no": {"no", 0}, "always": {"always", 0}, "unless-stopped": {"unless-stopped", 0}, "on-failure": {"on-failure", 0},
		"on-failure:3": {"on-failure", 3},
	} {
		if got, err := ParsePolicy(in); err != nil || got != want {
			t.Errorf("%q: %v %v", in, got, err)
		}
	}
	for _, in := range []string{"sometimes", "always:3", "on-failure:x", "on-failure:-1", "on-failure:", "no:1"} {
		if got, err := ParsePolicy(in); !errs.Is(err, errs.InvalidArgument) {
			t.Errorf("%q: %v %v", in, got, err)
		}
	}
}

func TestAgain(t *testing.T) {
	for _, c := range []struct {
		policy, count, stopped string
		status                 uint32
		want                   bool
	}{
		{"always", "", "", 0, true},
		{"always", "", "true", 1, false},
		{"unless-stopped", "7", "false", 0, true},
		{"unless-stopped", "", "true", 1, false},
		{"on-failure", "", "", 0, false},
		{"on-failure", "99", "", 1, true},
		{"on-failure:2", "1", "", 1, true},
		{"on-failure:2", "2", "", 1, false},
		{"no", "", "", 1, false},
	} {
		got, err := Again(map[string]string{label.RestartPolicy: c.policy, label.RestartCount: c.count, label.RestartStopped: c.stopped}, c.status)
		if err != nil || got != c.want {
			t.Errorf("%+v: %v %v", c, got, err)
		}
	}
}

// world is a store, an exchange and tasks that behave as the real ones do.
type world struct {
	t     *testing.T
	store *store.Store
	x     *event.Exchange
	v     store.Scoped

	dirs string

	mu     sync.Mutex
	tasks  map[string]shim.State
	starts []time.Time
	fail   error
	pods   []string // that were removed
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, x: event.New(), tasks: map[string]shim.State{}, dirs: t.TempDir()}
	var err error
	w.store, err = store.Open(t.Context(), store.Config{Root: t.TempDir(), BootID: "b", Publish: w.x.FromStore(slog.New(slog.DiscardHandler))})
	if err != nil {
		t.Fatal(err)
	}
	w.v = w.store.In(store.Scope{Namespace: "n"})
	return w
}

func (w *world) run(interval time.Duration, fn func()) {
	log := slog.New(slog.DiscardHandler)
	k := New(Config{Store: w.store, Tasks: w, Exchange: w.x, GC: gc.New(gc.Config{}, w.store, log), Dirs: w.dirs, Interval: interval, Log: log,
		RemovePod: func(_ context.Context, ns, id string) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.pods = append(w.pods, ns+"/"+id)
			return errs.New(errs.NotFound, "pod %s", id)
		}})
	ctx, stop := context.WithCancel(w.t.Context())
	done := make(chan error)
	go func() { done <- k.Run(ctx) }()
	synctest.Wait()
	fn()
	stop()
	if err := <-done; err != nil {
		w.t.Error(err)
	}
	if err := w.store.Close(); err != nil {
		w.t.Error(err)
	}
}

func (w *world) container(labels map[string]string) {
	w.t.Helper()
	err := w.v.Update(w.t.Context(), func(tx *store.Tx) error {
		_, err := tx.CreateContainer(store.Container{ID: "c", Runtime: "r", Spec: store.Any{TypeURL: "s", Value: []byte("{}")}, Labels: labels})
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) label(k, v string) {
	w.t.Helper()
	if err := w.v.Update(w.t.Context(), func(tx *store.Tx) error {
		_, err := tx.UpdateContainer(store.Container{ID: "c", Labels: map[string]string{k: v}}, "labels."+k)
		return err
	}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) count() string {
	c, err := store.Get(w.t.Context(), w.v, func(tx *store.Tx) (store.Container, error) { return tx.Container("c") })
	if err != nil {
		w.t.Fatal(err)
	}
	return c.Labels[label.RestartCount]
}

func (w *world) publish(topic string, m proto.Message) {
	a, err := event.Pack(m)
	if err == nil {
		err = w.x.Publish(event.Envelope{Time: time.Now(), Namespace: "n", Topic: topic, Event: a})
	}
	if err != nil {
		w.t.Error(err)
	}
}

// exit ends the container's process.
func (w *world) exit(status uint32) {
	w.mu.Lock()
	w.tasks["c"] = shim.State{ID: "c", Status: shim.Stopped, ExitStatus: status}
	w.mu.Unlock()
	w.publish("/tasks/exit", &eventsv1.TaskExit{ContainerID: "c", ID: "c", ExitStatus: status})
}

func (w *world) Get(_ context.Context, _ store.Scoped, cid, _ string) (task.State, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s, ok := w.tasks[cid]; ok {
		return s, nil
	}
	return task.State{}, errs.New(errs.NotFound, "task %q", cid)
}

func (w *world) Create(_ context.Context, _ store.Scoped, r task.CreateRequest) (uint32, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fail != nil {
		return 0, w.fail
	}
	w.tasks[r.ID] = shim.State{ID: r.ID, Status: shim.Created}
	return 1, nil
}

func (w *world) Start(_ context.Context, _ store.Scoped, cid, _ string) (uint32, error) {
	w.mu.Lock()
	w.tasks[cid] = shim.State{ID: cid, Status: shim.Running}
	w.starts = append(w.starts, time.Now())
	w.mu.Unlock()
	w.publish("/tasks/start", &eventsv1.TaskStart{ContainerID: cid})
	return 1, nil
}

func (w *world) Kill(_ context.Context, _ store.Scoped, _, _ string, _ uint32, _ bool) error {
	w.exit(137)
	return nil
}

func (w *world) Wait(context.Context, store.Scoped, string, string) (task.Exit, error) {
	return task.Exit{}, nil
}

func (w *world) Delete(_ context.Context, _ store.Scoped, cid string) (task.Exit, error) {
	w.mu.Lock()
	_, ok := w.tasks[cid]
	delete(w.tasks, cid)
	w.mu.Unlock()
	if !ok {
		return task.Exit{}, errs.New(errs.NotFound, "task %q", cid)
	}
	w.publish("/tasks/delete", &eventsv1.TaskDelete{ContainerID: cid, ID: cid})
	return task.Exit{}, nil
}

func (w *world) running() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.tasks["c"].Status == shim.Running
}

func (w *world) runs() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.starts)
}

func wanted(policy string) map[string]string {
	return map[string]string{label.RestartStatus: "running", label.RestartPolicy: policy}
}

// settle waits until nothing moves, at a time a little later.
func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.container(wanted("always"))
		_, _ = w.Start(t.Context(), w.v, "c", "")
		w.run(10*time.Second, func() {
			settle(time.Minute)
			for _, want := range []time.Duration{100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond} {
				n, at := w.runs(), time.Now()
				w.exit(0)
				settle(want - time.Millisecond)
				if w.runs() != n {
					t.Fatalf("started again before %s", want)
				}
				settle(2 * time.Millisecond)
				if w.runs() != n+1 {
					t.Fatalf("not started again %s after its end", time.Since(at))
				}
			}
			if w.count() != "3" {
				t.Errorf("count %s", w.count())
			}
			settle(11 * time.Second) // a long run: the delay begins anew
			n := w.runs()
			w.exit(1)
			settle(101 * time.Millisecond)
			if w.runs() != n+1 {
				t.Error("the delay did not begin anew")
			}
		})
	})
}

func TestPoliciesAtWork(t *testing.T) {
	for _, c := range []struct {
		policy string
		status uint32
		runs   int // restarts, when every run ends at once with the status
	}{{"no", 1, 0}, {"on-failure", 0, 0}, {"on-failure:2", 1, 2}} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.container(wanted(c.policy))
			_, _ = w.Start(t.Context(), w.v, "c", "")
			w.run(10*time.Second, func() {
				for range 6 {
					settle(time.Minute)
					if w.running() {
						w.exit(c.status)
					}
				}
				settle(time.Minute)
				if got := w.runs() - 1; got != c.runs {
					t.Errorf("%s with status %d: %d restarts, want %d", c.policy, c.status, got, c.runs)
				}
			})
		})
	}
}

// TestHandsOff: a container that somebody stops, starts or removes is left to them.
func TestHandsOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.container(wanted("always"))
		_, _ = w.Start(t.Context(), w.v, "c", "")
		w.run(10*time.Second, func() {
			settle(time.Minute)
			w.label(label.RestartStopped, "true") // nerdctl stop
			w.exit(137)
			settle(5 * time.Minute)
			if w.runs() != 1 {
				t.Fatal("a container that was stopped by a person runs again")
			}
			// nerdctl start: labels first, then a new task
			w.label(label.RestartStopped, "false")
			settle(5 * time.Second)
			if w.runs() != 1 {
				t.Fatal("it came between a client's label and its task")
			}
			settle(6 * time.Second)
			if w.runs() != 2 {
				t.Fatal("the client never started it, and nobody else did")
			}
			// nerdctl rm -f: end and deletion of the task, then of the row
			settle(time.Minute)
			w.exit(137)
			_, _ = w.Delete(t.Context(), w.v, "c")
			settle(5 * time.Second)
			if w.runs() != 2 {
				t.Fatal("it came between a client's deletion of task and container")
			}
			if err := w.v.Update(t.Context(), func(tx *store.Tx) error { return tx.DeleteContainer("c") }); err != nil {
				t.Fatal(err)
			}
			settle(time.Hour)
			if w.runs() != 2 {
				t.Fatal("a container that is gone was started")
			}
		})
	})
}

// TestRemovedMeanwhile: a task that was made here is ended if its container goes.
func TestRemovedMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.container(wanted("always"))
		_, _ = w.Start(t.Context(), w.v, "c", "")
		w.run(10*time.Second, func() {
			settle(time.Minute)
			w.exit(1)
			settle(time.Second)
			if err := w.v.Update(t.Context(), func(tx *store.Tx) error { return tx.DeleteContainer("c") }); err != nil {
				t.Fatal(err)
			}
			settle(time.Second)
			if _, err := w.Get(t.Context(), w.v, "c", ""); !errs.Is(err, errs.NotFound) {
				t.Error("its task lives on")
			}
		})
	})
}

// TestAfterTheDaemonsDeath: what ran before and runs no more is started at once.
func TestAfterTheDaemonsDeath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.container(wanted("unless-stopped"))
		settle(time.Hour)
		w.run(10*time.Second, func() {
			settle(time.Millisecond)
			if w.runs() != 1 {
				t.Error("not started")
			}
		})
	})
}

func TestStatusStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.container(wanted("always"))
		_, _ = w.Start(t.Context(), w.v, "c", "")
		w.run(10*time.Second, func() {
			settle(time.Minute)
			w.label(label.RestartStatus, "stopped")
			settle(time.Minute)
			if w.running() || w.runs() != 1 {
				t.Error("it runs")
			}
		})
	})
}

// TestFailures: a container that cannot be started is tried ever more rarely.
func TestFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.container(wanted("always"))
		_, _ = w.Start(t.Context(), w.v, "c", "")
		w.run(time.Hour, func() {
			settle(2 * time.Hour)
			w.mu.Lock()
			w.fail = errors.New("no")
			w.mu.Unlock()
			w.exit(1)
			settle(10 * time.Minute)
			n, err := strconv.Atoi(w.count())
			if err != nil || n < 10 || n > 25 {
				t.Errorf("%d attempts in ten minutes", n)
			}
			w.mu.Lock()
			w.fail = nil
			w.mu.Unlock()
			settle(3 * time.Hour)
			if !w.running() {
				t.Error("it never came back")
			}
		})
	})
}

// TestAutoRemove: a container that goes with its process takes its directory along,
// and no other.
func TestAutoRemove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		dir, other := filepath.Join(w.dirs, "c"), filepath.Join(t.TempDir(), "precious")
		for _, d := range []string{dir, other} {
			if err := os.Mkdir(d, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		there := func() bool {
			_, err := store.Get(t.Context(), w.v, func(tx *store.Tx) (store.Container, error) { return tx.Container("c") })
			return err == nil
		}
		w.run(10*time.Second, func() {
			w.container(map[string]string{label.AutoRemove: "true", label.Dir: dir, label.Pod: "p1"})
			settle(30 * time.Second) // its client is slow
			if !there() {
				t.Fatal("removed before its task was made")
			}
			_, _ = w.Start(t.Context(), w.v, "c", "")
			settle(time.Hour)
			if !there() {
				t.Fatal("removed while it runs")
			}
			w.exit(0)
			settle(time.Second)
			if _, err := os.Stat(dir); there() || err == nil || len(w.pods) != 1 || w.pods[0] != "n/p1" {
				t.Errorf("not removed; pods: %v", w.pods)
			}
			w.container(map[string]string{label.AutoRemove: "true", label.Dir: filepath.Join(w.dirs, "..", filepath.Base(filepath.Dir(other)), "precious")})
			w.label(label.Dir, other)
			settle(time.Minute)
			if _, err := os.Stat(other); there() || err != nil {
				t.Errorf("there %v, the other directory: %v", there(), err)
			}
		})
	})
}
