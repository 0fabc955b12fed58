package client

import (
	"context"
	"errors"
	"io"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berthd/berth/base/errs"
)

// codeKinds is what a gRPC code says in the words of base/errs.
var codeKinds = map[codes.Code]error{
	codes.NotFound: errs.NotFound, codes.AlreadyExists: errs.AlreadyExists, codes.InvalidArgument: errs.InvalidArgument,
	codes.FailedPrecondition: errs.FailedPrecondition, codes.Unavailable: errs.Unavailable, codes.Unimplemented: errs.Unimplemented,
	codes.OutOfRange: errs.OutOfRange, codes.Aborted: errs.Aborted, codes.DataLoss: errs.DataLoss,
	codes.PermissionDenied: errs.PermissionDenied, codes.Unauthenticated: errs.Unauthenticated,
	codes.ResourceExhausted: errs.ResourceExhausted, codes.Internal: errs.Internal,
	codes.Canceled: context.Canceled, codes.DeadlineExceeded: context.DeadlineExceeded,
}

// native turns a status into an error of its kind with the daemon's own words.
func (c *Client) native(ctx context.Context, err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	s, ok := status.FromError(err)
	if !ok {
		return err
	}
	switch {
	case s.Code() == codes.Unavailable && (strings.Contains(s.Message(), "connection error") || strings.Contains(s.Message(), "error reading from server")):
		return errs.New(errs.Unavailable, "the daemon at %s went away; containers go on without it. Start it again with `berth daemon`", c.Address)
	case s.Code() == codes.Unimplemented && strings.HasPrefix(s.Message(), "unknown "):
		return errs.New(errs.Unimplemented, "the daemon at %s does not serve this: %s", c.Address, s.Message())
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return errs.New(context.DeadlineExceeded, "given up: --timeout is over, and the daemon at %s has not answered yet", c.Address)
	case ctx.Err() != nil:
		return errs.New(context.Canceled, "interrupted")
	}
	kind := codeKinds[s.Code()]
	if kind == nil {
		return errors.New(s.Message())
	}
	return errs.New(kind, "%s", s.Message())
}
