package cri

import (
	"context"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/berthd/berth/base/errs"
)

// Early ends a request of the CRI shortly before its caller gives up: so that the
// caller gets our error, which says what hangs, and not its own.
func Early(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	end, ok := ctx.Deadline()
	if !ok || !strings.HasPrefix(info.FullMethod, "/runtime.v1.") {
		return next(ctx, req)
	}
	ctx, cancel := context.WithDeadlineCause(ctx, end.Add(-margin(time.Until(end))), errs.New(context.DeadlineExceeded, "the caller's time is over"))
	defer cancel()
	return next(ctx, req)
}

// The answer's way back is given a small part of the time that there is.
const (
	marginShare = 20
	leastMargin = 20 * time.Millisecond
	mostMargin  = time.Second
)

func margin(left time.Duration) time.Duration {
	return min(mostMargin, max(leastMargin, left/marginShare))
}
