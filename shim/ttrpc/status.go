package ttrpc

import (
	"context"
	"errors"
	"fmt"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/shim/wire"
)

// codes pairs the kinds of errors with google.rpc.Code.
var codes = []struct {
	kind error
	code int32
}{
	{context.Canceled, 1},
	{errs.InvalidArgument, 3},
	{context.DeadlineExceeded, 4},
	{errs.NotFound, 5},
	{errs.AlreadyExists, 6},
	{errs.PermissionDenied, 7},
	{errs.ResourceExhausted, 8},
	{errs.FailedPrecondition, 9},
	{errs.Aborted, 10},
	{errs.OutOfRange, 11},
	{errs.Unimplemented, 12},
	{errs.Internal, 13},
	{errs.Unavailable, 14},
	{errs.DataLoss, 15},
	{errs.Unauthenticated, 16},
}

const codeUnknown = 2

func toStatus(err error) wire.Status {
	if err == nil {
		return wire.Status{}
	}
	for _, c := range codes {
		if errors.Is(err, c.kind) {
			return wire.Status{Code: c.code, Message: err.Error()}
		}
	}
	return wire.Status{Code: codeUnknown, Message: err.Error()}
}

func fromStatus(s wire.Status) error {
	if s.Code == 0 {
		return nil
	}
	for _, c := range codes {
		if c.code == s.Code {
			return errs.New(c.kind, "%s", s.Message)
		}
	}
	return fmt.Errorf("code %d: %s", s.Code, s.Message)
}
