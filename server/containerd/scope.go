// Package containerd serves containerd's gRPC and ttrpc API: each method turns a
// message into one Go call and the result into a message. It owns no state of its
// own but the streams that clients have open; it never touches files or processes.
package containerd

import (
	"context"
	"errors"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/id"
	"github.com/berthd/berth/store"
)

// The metadata keys of the API (protocols.md part 0).
const (
	headerNamespace = "containerd-namespace"
	headerLease     = "containerd-lease"
)

func header(ctx context.Context, key string) string {
	if v := metadata.ValueFromIncomingContext(ctx, key); len(v) > 0 {
		return v[0]
	}
	return ""
}

// scope reads namespace and lease of a request.
func scope(ctx context.Context) (store.Scope, error) {
	ns := header(ctx, headerNamespace)
	if ns == "" {
		return store.Scope{}, errs.New(errs.FailedPrecondition, "namespace is required: set the %s header (or use -n)", headerNamespace)
	}
	return store.Scope{Namespace: ns, Lease: header(ctx, headerLease)}, id.Check("namespace", ns)
}

// in is the store as the request may see it.
func in(ctx context.Context, st *store.Store) (store.Scoped, error) {
	sc, err := scope(ctx)
	return st.In(sc), err
}

// kindCodes pairs kinds with codes. The first that fits an error counts.
var kindCodes = []struct {
	kind error
	code codes.Code
}{
	{context.Canceled, codes.Canceled}, {context.DeadlineExceeded, codes.DeadlineExceeded},
	{errs.DataLoss, codes.DataLoss}, {errs.NotFound, codes.NotFound}, {errs.AlreadyExists, codes.AlreadyExists},
	{errs.InvalidArgument, codes.InvalidArgument}, {errs.FailedPrecondition, codes.FailedPrecondition},
	{errs.Unavailable, codes.Unavailable}, {errs.Unimplemented, codes.Unimplemented}, {errs.OutOfRange, codes.OutOfRange},
	{errs.Aborted, codes.Aborted}, {errs.PermissionDenied, codes.PermissionDenied}, {errs.Unauthenticated, codes.Unauthenticated},
	{errs.ResourceExhausted, codes.ResourceExhausted}, {errs.Internal, codes.Internal},
}

// wireError gives an error its gRPC code. An error that already has one is kept.
func wireError(err error) error {
	if err == nil {
		return nil
	}
	if s, ok := status.FromError(err); ok && s.Code() != codes.Unknown {
		return err
	}
	for _, k := range kindCodes {
		if errors.Is(err, k.kind) {
			return status.Error(k.code, err.Error())
		}
	}
	return status.Error(codes.Unknown, err.Error())
}

// UnaryErrors and StreamErrors are the one place where kinds become codes.
func UnaryErrors(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	resp, err := next(ctx, req)
	return resp, wireError(err)
}

// StreamErrors is UnaryErrors for streams.
func StreamErrors(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	return wireError(next(srv, ss))
}
