package containerd

import (
	"context"

	"google.golang.org/grpc"
)

// waiting are the requests that last until something happens, which may be never.
// They do not hold up the daemon's end.
var waiting = map[string]bool{
	"/containerd.services.events.v1.Events/Subscribe": true,
	"/containerd.services.tasks.v1.Tasks/Wait":        true,
	"/containerd.services.sandbox.v1.Controller/Wait": true,
	"/runtime.v1.RuntimeService/GetContainerEvents":   true,
	"/grpc.health.v1.Health/Watch":                    true,
}

// UnaryWaits ends requests that wait as soon as stop does; they fail with its
// cause.
func UnaryWaits(stop context.Context) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		if !waiting[info.FullMethod] {
			return next(ctx, req)
		}
		ctx, end := until(ctx, stop)
		defer end()
		resp, err := next(ctx, req)
		if err != nil && stop.Err() != nil {
			err = context.Cause(stop)
		}
		return resp, err
	}
}

// StreamWaits is UnaryWaits for streams.
func StreamWaits(stop context.Context) grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		if !waiting[info.FullMethod] {
			return next(srv, ss)
		}
		ctx, end := until(ss.Context(), stop)
		defer end()
		err := next(srv, stoppingStream{ss, ctx})
		if err != nil && stop.Err() != nil {
			err = context.Cause(stop)
		}
		return err
	}
}

type stoppingStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s stoppingStream) Context() context.Context { return s.ctx }

// until is ctx that also ends when stop does.
func until(ctx, stop context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	off := context.AfterFunc(stop, func() { cancel(context.Cause(stop)) })
	return ctx, func() { off(); cancel(nil) }
}
