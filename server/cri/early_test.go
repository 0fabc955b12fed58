package cri

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
)

func TestEarly(t *testing.T) {
	for _, c := range []struct {
		method string
		limit  time.Duration
		want   time.Duration // when the request is told to end; 0: not at all
	}{
		{"/runtime.v1.RuntimeService/RunPodSandbox", 2 * time.Minute, 119 * time.Second},
		{"/runtime.v1.RuntimeService/StopContainer", 10 * time.Second, 9500 * time.Millisecond},
		{"/runtime.v1.ImageService/PullImage", 30 * time.Millisecond, 10 * time.Millisecond},
		{"/containerd.services.tasks.v1.Tasks/Kill", 10 * time.Second, 10 * time.Second},
		{"/runtime.v1.RuntimeService/Status", 0, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx := context.Background()
			if c.limit > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, c.limit)
				defer cancel()
			}
			begin := time.Now()
			_, err := Early(ctx, nil, &grpc.UnaryServerInfo{FullMethod: c.method}, func(ctx context.Context, _ any) (any, error) {
				if c.want == 0 {
					_, ok := ctx.Deadline()
					if ok {
						t.Errorf("%s: a deadline that nobody set", c.method)
					}
					return nil, nil
				}
				<-ctx.Done()
				return nil, context.Cause(ctx)
			})
			if took := time.Since(begin); took != c.want || c.want > 0 && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s with %s: ended after %s by %v, want %s", c.method, c.limit, took, err, c.want)
			}
		})
	}
}
