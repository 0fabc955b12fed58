package daemon

import (
	"context"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/berthd/berth/host/memory"
)

// restAfter is how long after work begins the memory is given back that it used.
const restAfter = 10 * time.Second

// rest gives memory back after requests: once for all that came in restAfter, and
// never without one.
type rest struct{ due atomic.Bool }

func (r *rest) worked() {
	if r.due.CompareAndSwap(false, true) {
		time.AfterFunc(restAfter, func() {
			r.due.Store(false)
			memory.Trim()
		})
	}
}

func (r *rest) unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	r.worked()
	return next(ctx, req)
}

func (r *rest) stream(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	r.worked()
	return next(srv, ss)
}
