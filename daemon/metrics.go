package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/daemon/doctor"
	"github.com/berthd/berth/server/debug"
)

// watching says whether anybody can ever ask for metrics: if not, requests are not
// counted.
func (p *parts) watching() bool {
	return p.cfg.Plugins.Metrics.Address != "" || p.cfg.Plugins.DebugSock.Address != ""
}

// count puts the counters of requests before all other interceptors.
func (p *parts) count() []grpc.ServerOption {
	if !p.watching() {
		return nil
	}
	if p.requests == nil {
		p.requests = debug.NewRequests(p.cfg.Plugins.Prometheus.Histogram)
		p.plugin("metrics.v1", "grpc-prometheus")
	}
	return []grpc.ServerOption{grpc.ChainUnaryInterceptor(p.requests.Unary), grpc.ChainStreamInterceptor(p.requests.Stream)}
}

// debugging is what the metrics and debug sockets serve.
func (p *parts) debugging() debug.Config {
	c := debug.Config{
		Sources: []debug.Source{debug.Build(Version, Revision), debug.Process, p.requests.Collect, p.numbers},
		Health:  func(ctx context.Context) error { return p.healthy(ctx, healthTime) },
	}
	if !p.cfg.Plugins.Cgroups.Off {
		c.Sources = append(c.Sources, debug.Containers(p.tasks.Usages))
	}
	return c
}

// numbers are those of the engines and the store.
func (p *parts) numbers(_ context.Context, page *debug.Page) {
	st := p.store.Tallies()
	page.Counter("berth_store_transactions_total", "Write transactions.", float64(st.Transactions.Value()))
	page.Histogram("berth_store_commit_seconds", "Commits, each of one or several transactions.", st.Commits.Read())

	gc := p.collect.Tallies()
	runs := gc.Runs.Read()
	status := func(s string) debug.Label { return debug.Label{Name: "status", Value: s} }
	page.Counter("containerd_gc_collections_total", "Garbage collections.", float64(runs.Count), status("success"))
	page.Counter("containerd_gc_collections_total", "Garbage collections.", float64(gc.Failed.Value()), status("fail"))
	page.Histogram("containerd_gc_gc_seconds", "How long they took.", runs)
	for kind, n := range map[string]uint64{
		"content": gc.Removed.Content.Value(), "snapshot": gc.Removed.Snapshots.Value(), "image": gc.Removed.Images.Value(),
		"lease": gc.Removed.Leases.Value(), "ingest": gc.Removed.Ingests.Value(),
	} {
		page.Counter("berth_gc_removed_total", "What they removed.", float64(n), debug.Label{Name: "kind", Value: kind})
	}

	im := p.images.Tallies()
	page.Gauge("berth_image_pulls_in_progress", "Pulls under way.", float64(im.Pulling.Value()))
	page.Counter("berth_image_pull_failures_total", "Pulls that failed.", float64(im.Failed.Value()))
	page.Counter("berth_image_fetched_bytes_total", "Bytes that registries sent.", float64(im.Fetched.Value()))
	page.Histogram("berth_image_pull_seconds", "Pulls that succeeded.", im.Pulls.Read())
}

// healthTime is how long the store may take to answer before it counts as ill.
const healthTime = 2 * time.Second

// headTime bounds how long a client of the HTTP sockets may take to ask.
const headTime = 10 * time.Second

// serveHTTP serves one HTTP socket until ctx ends.
func serveHTTP(ctx context.Context, l net.Listener, h http.Handler) error {
	s := &http.Server{Handler: h, ReadHeaderTimeout: headTime}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// health is what the store has to report, for `berth doctor`.
func (p *parts) health(ctx context.Context) (*anypb.Any, error) {
	damage, err := p.store.Damage(ctx)
	if err != nil {
		return nil, err
	}
	aside, err := p.store.Asides(ctx)
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(doctor.Health{Damage: damage, Aside: aside})
	return &anypb.Any{TypeUrl: doctor.HealthType, Value: b}, err
}
