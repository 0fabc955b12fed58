package shim

import (
	"context"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/shim/ttrpc"
	"github.com/berthd/berth/shim/wire"
)

// The services. The messages of the two task services are the same.
const (
	taskV2         = "containerd.task.v2.Task"
	taskV3         = "containerd.task.v3.Task"
	sandboxService = "containerd.runtime.sandbox.v1.Sandbox"
	ownService     = "berth.shim.v1.Shim"
)

// find returns the handler of a method, nil if there is none.
func (s *Shim) find(service, method string) ttrpc.Handler {
	switch service {
	case taskV2, taskV3:
		if h := s.findProcess(method); h != nil {
			return h
		}
		return s.findTask(method)
	case sandboxService:
		return s.findSandbox(method)
	case ownService:
		return s.findOwn(method)
	}
	return nil
}

// decode reads a request or says that it cannot be read.
func decode(m wire.Decoder, payload []byte) error {
	if err := m.Decode(payload); err != nil {
		return errs.New(errs.InvalidArgument, "read request: %v", err)
	}
	return nil
}

// handle makes a handler of a function of one kind of request.
func handle[R any, P interface {
	*R
	wire.Decoder
}](fn func(context.Context, P) (wire.Message, error)) ttrpc.Handler {
	return func(ctx context.Context, payload []byte) (wire.Message, error) {
		r := P(new(R))
		if err := decode(r, payload); err != nil {
			return nil, err
		}
		return fn(ctx, r)
	}
}

// onProcess handles requests that name no more than a container and a process.
func onProcess(fn func(context.Context, *wire.Process) (wire.Message, error)) ttrpc.Handler {
	return handle(fn)
}

// done answers with nothing.
func done(err error) (wire.Message, error) { return wire.Empty{}, err }

// answer answers with a message.
func answer[M wire.Message](m M, err error) (wire.Message, error) {
	if err != nil {
		return nil, err
	}
	return m, nil
}

func (s *Shim) findProcess(method string) ttrpc.Handler {
	switch method {
	case "State":
		return onProcess(func(_ context.Context, r *wire.Process) (wire.Message, error) { return answer(s.state(r)) })
	case "Start":
		return onProcess(func(ctx context.Context, r *wire.Process) (wire.Message, error) {
			pid, err := s.start(ctx, r)
			return answer(wire.Pid(pid), err)
		})
	case "Delete":
		return onProcess(func(ctx context.Context, r *wire.Process) (wire.Message, error) { return answer(s.delete(ctx, r)) })
	case "Pids":
		return onProcess(func(ctx context.Context, r *wire.Process) (wire.Message, error) { return answer(s.pids(ctx, r)) })
	case "Pause":
		return onProcess(func(ctx context.Context, r *wire.Process) (wire.Message, error) { return done(s.pause(ctx, r.ID)) })
	case "Resume":
		return onProcess(func(ctx context.Context, r *wire.Process) (wire.Message, error) { return done(s.resume(ctx, r.ID)) })
	case "Wait":
		return onProcess(func(ctx context.Context, r *wire.Process) (wire.Message, error) { return answer(s.wait(ctx, r)) })
	case "Stats":
		return onProcess(func(_ context.Context, r *wire.Process) (wire.Message, error) { return answer(s.stats(r)) })
	case "Connect":
		return onProcess(func(_ context.Context, r *wire.Process) (wire.Message, error) { return answer(s.connect(r)) })
	}
	return nil
}

func (s *Shim) findTask(method string) ttrpc.Handler {
	switch method {
	case "Create":
		return handle(func(ctx context.Context, r *wire.CreateTask) (wire.Message, error) {
			pid, err := s.create(ctx, r, false)
			return answer(wire.Pid(pid), err)
		})
	case "Exec":
		return handle(func(_ context.Context, r *wire.Exec) (wire.Message, error) { return done(s.exec(r)) })
	case "Kill":
		return handle(func(ctx context.Context, r *wire.Kill) (wire.Message, error) { return done(s.kill(ctx, r)) })
	case "Checkpoint":
		return handle(func(ctx context.Context, r *wire.Checkpoint) (wire.Message, error) { return done(s.checkpoint(ctx, r)) })
	case "ResizePty":
		return handle(func(_ context.Context, r *wire.ResizePty) (wire.Message, error) { return done(s.resize(r)) })
	case "CloseIO":
		return handle(func(_ context.Context, r *wire.CloseIO) (wire.Message, error) { return done(s.closeIO(r)) })
	case "Update":
		return handle(func(ctx context.Context, r *wire.Update) (wire.Message, error) { return done(s.update(ctx, r)) })
	case "Shutdown":
		return handle(func(ctx context.Context, r *wire.Shutdown) (wire.Message, error) { return done(s.shutdown(ctx, r)) })
	}
	return nil
}

// findOwn has what the task service has not. Requests and answers are messages
// that every client knows already: docs/design/shim.md.
func (s *Shim) findOwn(method string) ttrpc.Handler {
	switch method {
	case "Run":
		return handle(func(ctx context.Context, r *wire.CreateTask) (wire.Message, error) {
			pid, err := s.create(ctx, r, true)
			return answer(wire.Pid(pid), err)
		})
	case "ReopenLog":
		return onProcess(func(_ context.Context, r *wire.Process) (wire.Message, error) {
			return done(s.withStdio(*r, func(p *process) error { return p.stdio.Reopen() }))
		})
	case "LostLines":
		return onProcess(func(_ context.Context, r *wire.Process) (wire.Message, error) {
			var n wire.Count
			err := s.withStdio(*r, func(p *process) error { n = wire.Count(p.stdio.LostLines()); return nil })
			return answer(n, err)
		})
	case "Attach":
		return onProcess(func(_ context.Context, r *wire.Process) (wire.Message, error) {
			var path wire.Text
			err := s.withStdio(*r, func(p *process) error {
				if path = wire.Text(p.stdio.AttachPath()); path == "" {
					return errs.New(errs.FailedPrecondition, "process %s cannot be attached to: its output does not go to a log of ours", p.name())
				}
				return nil
			})
			return answer(path, err)
		})
	}
	return nil
}
