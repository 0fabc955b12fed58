package shim

import (
	"context"
	"errors"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/shim/ttrpc"
	"github.com/berthd/berth/shim/wire"
)

// sandbox is the group of containers that clients of the sandbox API make first.
// It has no process but the shim, and lives as long as that:
//
//	CreateSandbox        StartSandbox        StopSandbox, or its end with the shim
//	──────────────→ made ────────────→ ready ──────────────────────────→ stopped
type sandbox struct {
	id      string
	created time.Time

	mu      sync.Mutex
	started time.Time
	exited  time.Time
	done    chan struct{} // closed when it has stopped
}

// The words for a sandbox's state, as CRI has them.
const (
	sandboxReady    = "SANDBOX_READY"
	sandboxNotReady = "SANDBOX_NOTREADY"
)

// stopLimit is how long the containers of a sandbox have to end by SIGTERM when
// the request names no time.
const stopLimit = 10 * time.Second

func (s *Shim) findSandbox(method string) ttrpc.Handler {
	on := func(fn func(context.Context, *sandbox, *wire.Sandbox) (wire.Message, error)) ttrpc.Handler {
		return handle(func(ctx context.Context, r *wire.Sandbox) (wire.Message, error) {
			b, err := s.sandboxOf(r.ID)
			if err != nil {
				return nil, err
			}
			return fn(ctx, b, r)
		})
	}
	switch method {
	case "CreateSandbox":
		return handle(func(_ context.Context, r *wire.Sandbox) (wire.Message, error) { return done(s.createSandbox(r)) })
	case "StartSandbox":
		return on(func(_ context.Context, b *sandbox, _ *wire.Sandbox) (wire.Message, error) { return answer(b.start()) })
	case "Platform":
		return on(func(context.Context, *sandbox, *wire.Sandbox) (wire.Message, error) {
			return &wire.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}, nil
		})
	case "StopSandbox":
		return on(func(ctx context.Context, b *sandbox, r *wire.Sandbox) (wire.Message, error) {
			return done(s.stopSandbox(ctx, b, time.Duration(r.Timeout)*time.Second))
		})
	case "WaitSandbox":
		return on(func(ctx context.Context, b *sandbox, _ *wire.Sandbox) (wire.Message, error) {
			return answer(b.wait(ctx))
		})
	case "SandboxStatus":
		return on(func(_ context.Context, b *sandbox, _ *wire.Sandbox) (wire.Message, error) { return b.status(), nil })
	case "PingSandbox":
		return on(func(context.Context, *sandbox, *wire.Sandbox) (wire.Message, error) { return wire.Empty{}, nil })
	case "ShutdownSandbox":
		return on(func(ctx context.Context, b *sandbox, _ *wire.Sandbox) (wire.Message, error) {
			return done(s.shutdownSandbox(ctx, b))
		})
	}
	return nil
}

func (s *Shim) sandboxOf(id string) (*sandbox, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sandbox == nil || s.sandbox.id != id {
		return nil, errs.New(errs.NotFound, "sandbox %.80s does not exist", id)
	}
	return s.sandbox, nil
}

func (s *Shim) createSandbox(r *wire.Sandbox) error {
	if err := checkID("sandbox id", r.ID); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sandbox != nil {
		return errs.New(errs.AlreadyExists, "this shim holds sandbox %s", s.sandbox.id)
	}
	s.sandbox = &sandbox{id: r.ID, created: time.Now(), done: make(chan struct{})}
	s.watchLoneliness()
	return nil
}

func (b *sandbox) start() (*wire.SandboxStarted, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.started.IsZero() {
		return nil, errs.New(errs.FailedPrecondition, "sandbox %s has been started", b.id)
	}
	b.started = time.Now()
	return &wire.SandboxStarted{Pid: uint32(os.Getpid()), At: b.started}, nil
}

func (b *sandbox) status() *wire.SandboxStatus {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := &wire.SandboxStatus{ID: b.id, State: sandboxNotReady, CreatedAt: b.created, ExitedAt: b.exited}
	if !b.started.IsZero() && b.exited.IsZero() {
		out.State, out.Pid = sandboxReady, uint32(os.Getpid())
	}
	return out
}

func (b *sandbox) wait(ctx context.Context) (*wire.Waited, error) {
	select {
	case <-b.done:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return &wire.Waited{ExitedAt: b.exited}, nil
}

// stopSandbox ends the processes of all containers: by SIGTERM, and by SIGKILL
// those that are left when the time is over. The containers stay to be deleted.
func (s *Shim) stopSandbox(ctx context.Context, b *sandbox, limit time.Duration) error {
	if limit == 0 {
		limit = stopLimit
	}
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		if err := s.signalAll(ctx, sig, limit); err != nil {
			return err
		}
		limit = deathLimit
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.exited.IsZero() {
		b.exited = time.Now()
		close(b.done)
	}
	return nil
}

// signalAll signals every container and waits for their ends; that some have not
// ended in time is for the caller to see.
func (s *Shim) signalAll(ctx context.Context, sig syscall.Signal, limit time.Duration) error {
	short, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for _, c := range s.all() {
		err := s.kill(ctx, &wire.Kill{Process: wire.Process{ID: c.id}, Signal: uint32(sig), All: sig == syscall.SIGKILL})
		if err := errs.Ignore(err, errs.NotFound, errs.FailedPrecondition); err != nil {
			return err
		}
	}
	for _, c := range s.all() {
		c.mu.Lock()
		born := c.init.pid != 0
		c.mu.Unlock()
		if !born {
			continue
		}
		if _, err := s.wait(short, &wire.Process{ID: c.id}); err != nil && !errs.Is(err, errs.NotFound) {
			if sig == syscall.SIGTERM && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
				return nil
			}
			return err
		}
	}
	return nil
}

// shutdownSandbox ends everything, the shim too.
func (s *Shim) shutdownSandbox(ctx context.Context, b *sandbox) error {
	if err := s.stopSandbox(ctx, b, time.Second); err != nil {
		return err
	}
	s.mu.Lock()
	s.sandbox = nil
	s.mu.Unlock()
	return s.shutdown(ctx, &wire.Shutdown{Now: true})
}
