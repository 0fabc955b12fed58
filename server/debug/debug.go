// Package debug serves what people and collectors look at from outside: metrics,
// health and profiles, over HTTP on sockets of their own. Nothing is counted or read
// ahead of a request that does not count itself with an atomic addition. It owns the
// counters of gRPC requests; all other numbers come from the sources it is given.
package debug

import (
	"context"
	"fmt"
	"net/http"
	"net/http/pprof"
	"time"
)

// Source adds its numbers to a page when somebody asks for it.
type Source func(ctx context.Context, p *Page)

// Config is what is served.
type Config struct {
	Sources []Source
	Health  func(ctx context.Context) error // nil: well
}

// scrapeTime and healthTime bound one answer.
const (
	scrapeTime = 20 * time.Second
	healthTime = 2 * time.Second
)

// Metrics serves /v1/metrics (containerd's place), /metrics and /healthz.
func Metrics(c Config) http.Handler {
	mux := http.NewServeMux()
	c.register(mux)
	return mux
}

// All serves profiles besides: for a socket that only root may use.
func All(c Config) http.Handler {
	mux := http.NewServeMux()
	c.register(mux)
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}

func (c Config) register(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/metrics", c.metrics)
	mux.HandleFunc("GET /metrics", c.metrics)
	mux.HandleFunc("GET /healthz", c.health)
}

func (c Config) metrics(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), scrapeTime)
	defer cancel()
	var p Page
	for _, s := range c.Sources {
		s(ctx, &p)
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	_, _ = p.WriteTo(w) // whoever asked is gone, if not
}

func (c Config) health(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), healthTime)
	defer cancel()
	if c.Health != nil {
		if err := c.Health(ctx); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
	}
	_, _ = fmt.Fprintln(w, "ok")
}
