package registry

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"
	"time"
)

const (
	restAfterFailure = 5 * time.Second // doubled by each further failure in a row
	maxRest          = 2 * time.Minute
)

// health remembers which hosts do not answer, so that they are asked last for a
// while instead of first: nobody waits for a dead mirror twice.
//
//	well ──no connection, no header, 502/503/504──► resting 5 s, 10 s, … 2 min
//	resting ──any other answer──► well
type health struct {
	mu    sync.Mutex
	hosts map[string]hostHealth // by origin; well hosts have no entry
}

type hostHealth struct {
	failures int
	until    time.Time
}

func newHealth() *health { return &health{hosts: map[string]hostHealth{}} }

func (h *health) failed(origin string, err error, now time.Time) {
	var ne *netError
	if !errors.As(err, &ne) || errors.Is(err, context.Canceled) {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.hosts) > 1024 {
		clear(h.hosts)
	}
	s := h.hosts[origin]
	if now.Before(s.until) { // one outage, seen by many requests at once
		return
	}
	rest := restAfterFailure << min(s.failures, 10)
	h.hosts[origin] = hostHealth{failures: s.failures + 1, until: now.Add(min(rest, maxRest))}
}

func (h *health) answered(origin string, status int, now time.Time) {
	switch status {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		h.failed(origin, &netError{err: errors.New("out of service")}, now)
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.hosts, origin)
}

// rests gives the time until which a host is asked last; zero if it is well.
func (h *health) rests(origin string, now time.Time) time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := h.hosts[origin]; now.Before(s.until) {
		return s.until
	}
	return time.Time{}
}

// order puts resting hosts behind the others and keeps the order otherwise.
func (h *health) order(list []*endpoint, now time.Time) []*endpoint {
	out := slices.Clone(list)
	slices.SortStableFunc(out, func(a, b *endpoint) int {
		x, y := !h.rests(a.origin(), now).IsZero(), !h.rests(b.origin(), now).IsZero()
		switch {
		case x == y:
			return 0
		case x:
			return 1
		}
		return -1
	})
	return out
}
