package nri

import (
	"context"
	"crypto/rand"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/net/multiplex"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"

	"github.com/berthd/berth/base/errs"
)

// raw is a plugin without the library: it says what it likes.
type raw struct {
	api.PluginService // what is not overridden panics: it is never called
	configure         *api.ConfigureResponse
	create            func() (*api.CreateContainerResponse, error)
	validate          *api.ValidateContainerAdjustmentResponse
	synced            chan struct{}
}

func (r *raw) Configure(ctx context.Context, _ *api.ConfigureRequest) (*api.ConfigureResponse, error) {
	if r.configure == nil {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return r.configure, nil
}

func (r *raw) Synchronize(context.Context, *api.SynchronizeRequest) (*api.SynchronizeResponse, error) {
	defer close(r.synced)
	return &api.SynchronizeResponse{}, nil
}

func (r *raw) CreateContainer(context.Context, *api.CreateContainerRequest) (*api.CreateContainerResponse, error) {
	return r.create()
}

func (r *raw) ValidateContainerAdjustment(context.Context, *api.ValidateContainerAdjustmentRequest) (*api.ValidateContainerAdjustmentResponse, error) {
	return r.validate, nil
}

func (r *raw) Shutdown(context.Context, *api.Empty) (*api.Empty, error) { return &api.Empty{}, nil }

// only is the mask of these events.
func only(events ...api.Event) int32 {
	var m api.EventMask
	m.Set(events...)
	return int32(m)
}

// dial connects it and registers it so often.
func (r *raw) dial(t *testing.T, p *Plugins, name string, times int) (api.RuntimeService, net.Conn) {
	t.Helper()
	r.synced = make(chan struct{})
	conn, err := net.Dial("unix", p.cfg.Socket)
	if err != nil {
		t.Fatal(err)
	}
	m := multiplex.Multiplex(conn)
	in, err := m.Listen(multiplex.PluginServiceConn)
	if err != nil {
		t.Fatal(err)
	}
	out, err := m.Open(multiplex.RuntimeServiceConn)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	api.RegisterPluginService(s, r)
	ended := make(chan struct{})
	go func() { defer close(ended); _ = s.Serve(context.Background(), in) }()
	client := ttrpc.NewClient(out)
	t.Cleanup(func() { _, _, _ = client.Close(), s.Close(), m.Close(); <-ended })
	rt := api.NewRuntimeClient(client)
	for i := range times {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		_, err := rt.RegisterPlugin(ctx, &api.RegisterPluginRequest{PluginName: name, PluginIdx: "10"})
		cancel()
		if i == 0 && err != nil {
			t.Fatal(err)
		}
	}
	return rt, conn
}

// TestHostile: what a plugin says is never believed further than the protocol goes,
// and the next plugin is served.
func TestHostile(t *testing.T) {
	w := &world{}
	p := testbed(t, w, func(c *Config) { c.Register, c.Request = 2*time.Second, 2*time.Second })
	garbage := make([]byte, 1<<16)
	if _, err := rand.Read(garbage); err != nil {
		t.Fatal(err)
	}
	for name, bytes := range map[string][]byte{"noise": garbage, "a frame of 4 GiB": append([]byte{0, 0, 0, 2, 0xff, 0xff, 0xff, 0xff}, garbage...), "an unknown channel": {0, 0, 0, 99, 0, 0, 0, 1, 7}} {
		c, err := net.Dial("unix", p.cfg.Socket)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		_, _ = c.Write(bytes) // it may be cut off at any byte
		_ = c.Close()
	}
	(&raw{}).dial(t, p, "never-configured", 1)
	(&raw{configure: &api.ConfigureResponse{Events: -1}}).dial(t, p, "wants-all", 1)
	twice := &raw{configure: &api.ConfigureResponse{Events: only(api.Event_CREATE_CONTAINER)}}
	twice.create = func() (*api.CreateContainerResponse, error) {
		return &api.CreateContainerResponse{Update: []*api.ContainerUpdate{{}}}, nil
	}
	twice.dial(t, p, "twice", 3)
	await(t, p, "10-twice", true)
	time.Sleep(2500 * time.Millisecond) // whoever is not registered by then is cut off
	if got := p.Names(); len(got) != 1 {
		t.Errorf("plugins %v", got)
	}
	if _, err := w.make(t.Context(), p, "c"); !errs.Is(err, errs.InvalidArgument) {
		t.Errorf("an update of no container: %v", err)
	}
}

// TestNotYet: who does not take part may not change anything.
func TestNotYet(t *testing.T) {
	w := &world{}
	p := testbed(t, w, func(c *Config) { c.Register = 2 * time.Second })
	rt, _ := (&raw{}).dial(t, p, "x", 1) // it hangs in Configure
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := rt.UpdateContainers(ctx, &api.UpdateContainersRequest{Evict: []*api.ContainerEviction{{ContainerId: "c"}}}); err == nil {
		t.Error("it evicts a container")
	}
	if len(w.evicted) > 0 {
		t.Error(w.evicted)
	}
}

func TestEvict(t *testing.T) {
	w := &world{}
	p := testbed(t, w, nil)
	r := &raw{configure: &api.ConfigureResponse{Events: only(api.Event_CREATE_CONTAINER)}}
	r.create = func() (*api.CreateContainerResponse, error) {
		return &api.CreateContainerResponse{Evict: []*api.ContainerEviction{{ContainerId: "old", Reason: "it is full"}}}, nil
	}
	rt, _ := r.dial(t, p, "x", 1)
	await(t, p, "10-x", true)
	if _, err := w.make(t.Context(), p, "new"); err != nil {
		t.Fatal(err)
	}
	if _, err := rt.UpdateContainers(t.Context(), &api.UpdateContainersRequest{Evict: []*api.ContainerEviction{{ContainerId: "older", Reason: "so"}}}); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		w.mu.Lock()
		got := strings.Join(w.evicted, ", ")
		w.mu.Unlock()
		if strings.Contains(got, "old: it is full") && strings.Contains(got, "older: so") {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("evicted: %q", got)
		}
	}
}

// TestLostConnection: a plugin that goes away in the middle of a request is left out
// of it, or the request fails, as the plugin has asked for.
func TestLostConnection(t *testing.T) {
	for name, fails := range map[string]bool{"lenient": false, "strict": true} {
		w := &world{}
		p := testbed(t, w, nil)
		r := &raw{configure: &api.ConfigureResponse{Events: only(api.Event_CREATE_CONTAINER), FailurePolicy: &api.FailurePolicy{FailRequest: fails}}}
		_, conn := r.dial(t, p, name, 1)
		r.create = func() (*api.CreateContainerResponse, error) {
			_ = conn.Close()
			return &api.CreateContainerResponse{}, nil
		}
		await(t, p, "10-"+name, true)
		if _, err := w.make(t.Context(), p, "c"); (err != nil) != fails {
			t.Errorf("%s: %v", name, err)
		}
		await(t, p, "10-"+name, false)
	}
}

// TestKeepConnected: a plugin that asks to be kept when it is late, is.
func TestKeepConnected(t *testing.T) {
	w := &world{}
	p := testbed(t, w, func(c *Config) { c.Request = time.Second })
	r := &raw{configure: &api.ConfigureResponse{Events: only(api.Event_CREATE_CONTAINER), FailurePolicy: &api.FailurePolicy{KeepConnected: true}}}
	var slow atomic.Bool
	slow.Store(true)
	r.create = func() (*api.CreateContainerResponse, error) {
		if slow.Load() {
			time.Sleep(2 * p.cfg.Request)
		}
		return &api.CreateContainerResponse{}, nil
	}
	r.dial(t, p, "x", 1)
	await(t, p, "10-x", true)
	if _, err := w.make(t.Context(), p, "c"); err != nil {
		t.Error(err)
	}
	if len(p.Names()) != 1 {
		t.Error("it is left out")
	}
	time.Sleep(2 * p.cfg.Request)
	slow.Store(false)
	if _, err := w.make(t.Context(), p, "d"); err != nil {
		t.Error(err)
	}
}

func TestValidatorPlugin(t *testing.T) {
	w := &world{}
	p := testbed(t, w, nil)
	r := &raw{configure: &api.ConfigureResponse{Events: only(api.Event_VALIDATE_CONTAINER_ADJUSTMENT)}, validate: &api.ValidateContainerAdjustmentResponse{Reject: true, Reason: "too much"}}
	r.dial(t, p, "x", 1)
	await(t, p, "10-x", true)
	if _, err := w.make(t.Context(), p, "c"); !errs.Is(err, errs.FailedPrecondition) || !strings.Contains(err.Error(), "too much") {
		t.Errorf("rejected: %v", err)
	}
	r.validate = &api.ValidateContainerAdjustmentResponse{}
	if _, err := w.make(t.Context(), p, "d"); err != nil {
		t.Errorf("accepted: %v", err)
	}
}

func FuzzMerge(f *testing.F) {
	a := &api.ContainerAdjustment{}
	a.AddEnv("X", "y")
	a.RemoveEnv("X")
	a.AddMount(&api.Mount{Destination: "/m"})
	a.SetLinuxMemoryLimit(5)
	a.SetLinuxRDTClosID("c")
	seed, err := proto.Marshal(a)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed, seed)
	f.Fuzz(func(t *testing.T, one, two []byte) {
		m := newMerger("c")
		for i, b := range [][]byte{one, two} {
			a := &api.ContainerAdjustment{}
			if proto.Unmarshal(b, a) != nil {
				return
			}
			if _, err := m.adjust(a, []string{"10-a", "20-b"}[i]); err != nil {
				return
			}
		}
		if _, err := proto.Marshal(m.adjusted); err != nil {
			t.Errorf("what comes out is no message: %v", err)
		}
	})
}
