package pod

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/host/cgroup"
	"github.com/berthd/berth/store"
)

func bare(t *testing.T) *Pods {
	p := New(t.Context(), Config{})
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func TestLogPath(t *testing.T) {
	for _, c := range []struct {
		dir, rel, want string
		bad            bool
	}{
		{"/var/log/pods/p", "c/0.log", "/var/log/pods/p/c/0.log", false},
		{"/var/log/pods/p", "", "", false},
		{"", "c/0.log", "", false},
		{"/var/log/pods/p", "../../../etc/cron.d/x", "", true},
		{"/var/log/pods/p", "a/../../x", "", true},
		{"/var/log/pods/p", "/etc/passwd", "", true},
		{"logs", "x", "", true},
		{"/var/log", "a\nb", "", true},
	} {
		got, err := logPath(c.dir, c.rel)
		if got != c.want || errs.Is(err, errs.InvalidArgument) != c.bad {
			t.Errorf("%q in %q: %q, %v", c.rel, c.dir, got, err)
		}
	}
}

func TestResolvConf(t *testing.T) {
	got, err := resolvConf(&cri.PodSandboxConfig{DnsConfig: &cri.DNSConfig{Servers: []string{"10.0.0.1", "fd00::1"}, Searches: []string{"a.b", "c"}, Options: []string{"ndots:5"}}})
	if want := "search a.b c\nnameserver 10.0.0.1\nnameserver fd00::1\noptions ndots:5\n"; got != want || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	for _, bad := range []string{"10.0.0.1\nnameserver 6.6.6.6", "a b", "x\x00"} {
		if _, err := resolvConf(&cri.PodSandboxConfig{DnsConfig: &cri.DNSConfig{Servers: []string{bad}}}); !errs.Is(err, errs.InvalidArgument) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestByPrefix(t *testing.T) {
	p := bare(t)
	for _, id := range []string{"aaaa1", "aaaa2", "bbbb1"} {
		p.showPod(&Pod{Namespace: "n", ID: id, State: store.PodReady})
	}
	p.showPod(&Pod{Namespace: "n", ID: "cccc1", State: store.PodCreating})
	p.showPod(&Pod{Namespace: "n", ID: "cccc2", State: store.PodReady, hidden: true})
	for _, c := range []struct {
		id   string
		want string
		kind error
	}{
		{"aaaa1", "aaaa1", nil}, {"b", "bbbb1", nil}, {"aaaa", "", errs.InvalidArgument}, {"", "", errs.NotFound}, {"cccc1", "", errs.NotFound},
		{"cccc2", "", errs.NotFound}, {"d", "", errs.NotFound},
	} {
		got, err := p.Pod("n", c.id)
		if c.kind == nil && (err != nil || got.ID != c.want) || c.kind != nil && !errs.Is(err, c.kind) {
			t.Errorf("%q: %v, %v", c.id, got, err)
		}
	}
	if _, err := p.Pod("other", "aaaa1"); !errs.Is(err, errs.NotFound) {
		t.Errorf("another namespace: %v", err)
	}
	if all := p.Pods("n"); len(all) != 3 {
		t.Errorf("%d pods are listed, want those 3 that are made", len(all))
	}
}

// TestMakingIsJoined: those who ask for one name while it is made get one result,
// also those who come after the first has left.
func TestMakingIsJoined(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(t.Context(), Config{})
		var runs atomic.Int32
		make := func(ctx context.Context, m *making) (string, error) {
			runs.Add(1)
			m.at("waiting for a plugin")
			select {
			case <-time.After(time.Minute):
				return "the id", nil
			case <-ctx.Done():
				return "", context.Cause(ctx)
			}
		}
		short, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := p.do(short, "pod/n/x", "pod x", make)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "pod x is still being made: waiting for a plugin, for 10s") {
			t.Errorf("first: %v", err)
		}
		id, err := p.do(t.Context(), "pod/n/x", "pod x", make)
		if id != "the id" || err != nil || runs.Load() != 1 {
			t.Errorf("second: %q, %v after %d runs", id, err, runs.Load())
		}
		// One that hangs for good ends when its own time is over.
		_, err = p.do(t.Context(), "pod/n/y", "pod y", func(ctx context.Context, _ *making) (string, error) { <-ctx.Done(); return "", context.Cause(ctx) })
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("one that hangs: %v", err)
		}
		_ = p.Close()
	})
}

func TestHoldTellsWhatTheOtherDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(t.Context(), Config{})
		h, err := p.hold(t.Context(), "pod", "n", "1", "stop")
		if err != nil {
			t.Fatal(err)
		}
		p.stageOf(&Pod{Namespace: "n", ID: "1"}, "detaching it from its networks")
		short, cancel := context.WithTimeout(t.Context(), 7*time.Second)
		defer cancel()
		_, err = p.hold(short, "pod", "n", "1", "remove")
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "remove pod 1: another change of it is under way: detaching it from its networks, for 7s") {
			t.Errorf("%v", err)
		}
		h.release()
		if h, err = p.hold(t.Context(), "pod", "n", "1", "remove"); err != nil {
			t.Fatal(err)
		}
		h.release()
		_ = p.Close()
	})
}

func TestFeed(t *testing.T) {
	p := bare(t)
	p.tellPod(cri.ContainerEventType_CONTAINER_CREATED_EVENT, &Pod{Namespace: "n", ID: "nobody listens"})
	l, other := p.Listen("n"), p.Listen("else")
	defer l.Close()
	defer other.Close()
	p.showContainer(&Container{Namespace: "n", ID: "c", Pod: "1", State: store.ContainerRunning})
	p.tellPod(cri.ContainerEventType_CONTAINER_STARTED_EVENT, &Pod{Namespace: "n", ID: "1"})
	got, err := l.Next(t.Context())
	if err != nil || len(got) != 1 || got[0].ID != "1" || got[0].PodNow == nil || len(got[0].Containers) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if got, err := other.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("another namespace hears %v, %v", got, err)
	}
	// A reader that does not read is told so, and holds up nobody.
	for i := range maxWaiting + 2 {
		p.feed.tell(Event{Namespace: "n", ID: fmt.Sprint(i)})
	}
	if got, err := l.Next(t.Context()); len(got) != maxWaiting || !errs.Is(err, errs.ResourceExhausted) {
		t.Errorf("%d events and %v", len(got), err)
	}
	w, left := p.feed.waitExit("n", "c"), p.feed.waitExit("n", "c")
	left.cancel()
	p.feed.exit(&Container{Namespace: "n", ID: "c"})
	select {
	case <-w.done:
	default:
		t.Error("who waits for an end is not woken")
	}
	w.cancel()
	if len(p.feed.waits) != 0 {
		t.Errorf("%d waits are left", len(p.feed.waits))
	}
}

func TestRates(t *testing.T) {
	var r rates
	k := key{"n", "c"}
	start := time.Unix(1000, 0)
	at := func(ms int64, total uint64) cgroup.Usage {
		u := cgroup.Usage{At: start.Add(time.Duration(ms) * time.Millisecond)}
		u.CPU.Total = total
		return u
	}
	for _, c := range []struct {
		u    cgroup.Usage
		want uint64
		what string
	}{
		{at(2000, 1e9), 5e8, "the first reading is the mean since the start"},
		{at(3000, 3e9), 2e9, "then it is that since the last one"},
		{at(3050, 3e9), 2e9, "two at once are one"},
		{at(4000, 3e9), 0, "nothing used"},
		{at(5000, 1e9), 0, "a counter that went back is no use"},
	} {
		if got := r.of(k, c.u, start); got != c.want {
			t.Errorf("%s: %d, want %d", c.what, got, c.want)
		}
	}
	r.forget(k)
	if len(r.all) != 0 {
		t.Error("not forgotten")
	}
}

func TestMergeResources(t *testing.T) {
	old := &cri.LinuxContainerResources{CpuShares: 100, CpuQuota: 5, MemoryLimitInBytes: 1 << 20, CpusetCpus: "0", Unified: map[string]string{"a.b": "1"}}
	got := mergeResources(old, &cri.LinuxContainerResources{CpuQuota: 7, CpusetMems: "0", Unified: map[string]string{"c.d": "2"}})
	if got.CpuShares != 100 || got.CpuQuota != 7 || got.MemoryLimitInBytes != 1<<20 || got.CpusetCpus != "0" || got.CpusetMems != "0" || len(got.Unified) != 2 {
		t.Errorf("%v", got)
	}
	if old.CpuQuota != 5 || len(old.Unified) != 1 {
		t.Errorf("the old one is changed: %v", old)
	}
}

func TestSelect(t *testing.T) {
	labels := map[string]string{"a": "1", "b": ""}
	for _, c := range []struct {
		s    Select
		want bool
	}{
		{Select{}, true}, {Select{ID: "ab"}, true}, {Select{ID: "b"}, false}, {Select{Pod: "p"}, true}, {Select{Pod: "q"}, false},
		{Select{Labels: map[string]string{"a": "1"}}, true}, {Select{Labels: map[string]string{"a": "2"}}, false},
		{Select{Labels: map[string]string{"b": ""}}, true}, {Select{Labels: map[string]string{"c": ""}}, false},
	} {
		if got := c.s.match("abc", "pod", labels); got != c.want {
			t.Errorf("%+v: %v", c.s, got)
		}
	}
}

// TestCRISignal: every signal that CRI can ask for comes back as it was asked for.
func TestCRISignal(t *testing.T) {
	for n := range cri.Signal_name {
		c := &Container{Config: &cri.ContainerConfig{StopSignal: cri.Signal(n)}}
		c.StopSignal = 15
		want := cri.Signal(n)
		if want == cri.Signal_SIGNAL_RUNTIME_DEFAULT {
			want = cri.Signal_SIGNAL_SIGTERM
		}
		if got := c.CRISignal(); got != want {
			t.Errorf("%v: %v", want, got)
		}
	}
}

func TestBrokenHandler(t *testing.T) {
	p := New(t.Context(), Config{Handlers: map[string]*Handler{"kata": {Broken: errors.New("base_runtime_spec: no such file")}, "runc": {}}})
	defer p.Close()
	if _, err := p.handler("kata"); !errs.Is(err, errs.FailedPrecondition) || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("%v", err)
	}
	if _, err := p.handler("gvisor"); !errs.Is(err, errs.NotFound) || !strings.Contains(err.Error(), "[") {
		t.Errorf("%v", err)
	}
	if c := p.complaints(); !strings.Contains(c, `"kata" cannot be used`) {
		t.Errorf("%q", c)
	}
}
