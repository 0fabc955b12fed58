package registry

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/berthd/berth/base/errs"
)

// try asks one host and judges the answer; quick is set where another host is
// waiting to be asked instead.
type try func(ctx context.Context, e *endpoint, quick bool) error

// with lists the endpoints that have a capability.
func (r *Remote) with(c capability) []*endpoint {
	var out []*endpoint
	for _, e := range r.endpoints {
		if e.caps&c != 0 {
			out = append(out, e)
		}
	}
	return out
}

// ask tries hosts in turn until one does: see docs/design/registry.md, "Order".
// A host that is only slow to connect is asked again, patiently, after all
// others. Repetitions are for the last host in line. The error is a *Failure, or
// the context's.
func (r *Remote) ask(ctx context.Context, op string, hosts []*endpoint, f try) error {
	fail := &Failure{Op: op}
	if len(hosts) == 0 {
		fail.kind = errs.FailedPrecondition
		fail.Attempts = []Attempt{{Host: r.ref.Host, Err: errs.New(errs.FailedPrecondition, "no host of %s has the capability", orNone(r.file))}}
		return fail
	}
	queue := r.c.health.order(hosts, time.Now())
	quick := len(queue) // hosts still in their first turn
	budget := max(r.c.limits.Attempts, len(queue))
	verdict := slices.ContainsFunc(hosts, func(e *endpoint) bool { return e.upstream }) // the registry's own counts
	repeats := 0
	for tries := 0; len(queue) > 0; tries++ {
		e, inQuick := queue[0], quick > 0
		quick--
		queue = queue[1:]
		hurry := inQuick && len(queue) > 0 && e.dial == 0
		began := time.Now()
		err := f(ctx, e, hurry)
		if err == nil {
			r.note(ctx, fail, e)
			return nil
		}
		if ctx.Err() != nil {
			return errs.New(kindOfContext(ctx), "%s: %w", op, context.Cause(ctx))
		}
		fail.Attempts = append(fail.Attempts, Attempt{
			Host: r.spoken(e), Took: time.Since(began), Err: err, Hint: r.hint(e, err),
		})
		if fail.kind == nil || e.upstream || !verdict {
			fail.kind = kindOf(err)
		}
		var own *finalError
		if errors.As(err, &own) || tries+1 >= budget && len(queue) == 0 {
			break
		}
		var ne *netError
		if errors.As(err, &ne) && ne.slow {
			queue = append(queue, e)
			continue
		}
		if len(queue) == 0 && repeatable(err) {
			wait, ok := r.pause(err, repeats)
			repeats++
			if !ok || sleep(ctx, wait) != nil {
				break
			}
			queue = append(queue, e)
		}
	}
	if ctx.Err() != nil {
		return errs.New(kindOfContext(ctx), "%s: %w", op, context.Cause(ctx))
	}
	return fail
}

// spoken is e's origin as it is spoken to.
func (r *Remote) spoken(e *endpoint) string {
	if e.orHTTP && r.c.pool.speaksPlain(e.host) {
		return "http://" + e.host
	}
	return e.scheme + "://" + e.host
}

func orNone(file string) string {
	if file == "" {
		return "no hosts.toml"
	}
	return file
}

func kindOfContext(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return context.DeadlineExceeded
	}
	return context.Canceled
}

// note logs what a success would hide. A mirror that has not got something is
// everyday; one that does not work is not.
func (r *Remote) note(ctx context.Context, f *Failure, e *endpoint) {
	for _, a := range f.Attempts {
		level := slog.LevelWarn
		if errors.Is(a.Err, errs.NotFound) {
			level = slog.LevelDebug
		}
		r.c.log.Log(ctx, level, "registry host did not serve", "op", f.Op, "host", a.Host, "problem", a.Err.Error(), "served_by", e.host)
	}
}

// repeatable says whether the same request to the same host may go well later.
func repeatable(err error) bool {
	var status *StatusError
	if errors.As(err, &status) {
		switch status.Code {
		case http.StatusRequestTimeout, http.StatusTooManyRequests,
			http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return true
		}
		return false
	}
	var ne *netError
	if !errors.As(err, &ne) || errors.Is(err, errs.PermissionDenied) || isPlainAnswer(err) || isCertificate(err) || isNoSuchHost(err) {
		return false
	}
	var timeout net.Error
	return !errors.Is(err, errHeaderWait) && !(errors.As(err, &timeout) && timeout.Timeout()) // those had their time
}

// pause says how long to wait before repetition n, or that it is not worth it.
func (r *Remote) pause(err error, n int) (time.Duration, bool) {
	wait := r.c.limits.Backoff << min(n, 10)
	wait += rand.N(wait/2 + 1) // so that many nodes do not come back at once
	var status *StatusError
	if errors.As(err, &status) && status.Wait > 0 {
		if status.Wait > r.c.limits.RetryAfter {
			return 0, false
		}
		wait = max(wait, status.Wait)
	}
	return min(wait, r.c.limits.RetryAfter), true
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
