// Package errs names the kinds of failure that berth tells apart. A kind is a
// sentinel: wrap it with what was being done to which thing, test for it with
// errors.Is. Only server turns kinds into protocol codes.
package errs

import (
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
)

// The kinds, one for each gRPC code that clients of containerd's API rely on.
var (
	NotFound           = errdefs.ErrNotFound
	AlreadyExists      = errdefs.ErrAlreadyExists
	InvalidArgument    = errdefs.ErrInvalidArgument
	FailedPrecondition = errdefs.ErrFailedPrecondition
	Unavailable        = errdefs.ErrUnavailable
	Unimplemented      = errdefs.ErrNotImplemented
	OutOfRange         = errdefs.ErrOutOfRange
	Aborted            = errdefs.ErrAborted
	DataLoss           = errdefs.ErrDataLoss
	PermissionDenied   = errdefs.ErrPermissionDenied
	Unauthenticated    = errdefs.ErrUnauthenticated
	ResourceExhausted  = errdefs.ErrResourceExhausted
	Internal           = errdefs.ErrInternal
)

// New makes an error of one kind whose text does not repeat the kind's name, for
// messages that already say it in the words of the thing concerned.
func New(kind error, format string, args ...any) error {
	return &worded{kind: kind, err: fmt.Errorf(format, args...)}
}

type worded struct {
	kind error
	err  error
}

func (w *worded) Error() string   { return w.err.Error() }
func (w *worded) Unwrap() []error { return []error{w.kind, w.err} }

// Is reports whether err is of the kind, as errors.Is does.
func Is(err, kind error) bool { return errors.Is(err, kind) }

// Ignore returns nil if err is one of the kinds, else err.
func Ignore(err error, kinds ...error) error {
	for _, k := range kinds {
		if errors.Is(err, k) {
			return nil
		}
	}
	return err
}
