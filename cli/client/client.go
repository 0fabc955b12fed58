// Package client is the command line's connection to a daemon: one gRPC channel
// that carries namespace and lease with every request, and turns statuses into the
// errors of base/errs. It owns the channel and side streams; it decides nothing
// about containers or images.
package client

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	contentapi "github.com/containerd/containerd/api/services/content/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	streamingapi "github.com/containerd/containerd/api/services/streaming/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	transferapi "github.com/containerd/containerd/api/services/transfer/v1"
	versionapi "github.com/containerd/containerd/api/services/version/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/base/errs"
)

// maxMessage is the largest message either way, in bytes: the daemon's own limit.
const maxMessage = 16 << 20

// The metadata keys of containerd's API.
const (
	headerNamespace = "containerd-namespace"
	headerLease     = "containerd-lease"
)

// headerPods is berth's own: the namespace of pods, where that is not Kubernetes'.
const headerPods = "berth-namespace"

// Client is a channel seen through one namespace and at most one lease. It is a
// grpc.ClientConnInterface; copies share the channel.
type Client struct {
	conn      *grpc.ClientConn
	Address   string
	Namespace string
	// Trace, if set, is told how long each request took.
	Trace func(method string, took time.Duration)
	lease string
	pods  string // namespace of pods; "" is Kubernetes'
	known *known
}

// known is what copies of a client have learned of the daemon.
type known struct {
	mu     sync.Mutex
	places Places
}

// Dial checks that somebody listens at address, a path or unix://path, and returns
// a client of the namespace. Errors say how to start a daemon.
func Dial(ctx context.Context, address, namespace string) (*Client, error) {
	path := strings.TrimPrefix(address, "unix://")
	var d net.Dialer
	probe, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, unreachable(path, err)
	}
	_ = probe.Close() // it only showed that somebody listens
	conn, err := grpc.NewClient("passthrough:///unix",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, MaxDelay: 2 * time.Second}, MinConnectTimeout: 5 * time.Second}),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", path) }))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	return &Client{conn: conn, Address: path, Namespace: namespace, known: &known{}}, nil
}

func unreachable(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return errs.New(errs.Unavailable, "cannot reach the daemon at %s: is it running? Start it with `berth daemon`, or name another socket with --address or BERTH_ADDRESS", path)
	case errors.Is(err, fs.ErrPermission):
		hint := ""
		if os.Geteuid() != 0 {
			hint = ": run this as root"
		}
		return errs.New(errs.PermissionDenied, "cannot reach the daemon at %s: permission denied%s", path, hint)
	}
	return errs.New(errs.Unavailable, "cannot reach the daemon at %s: %w", path, err)
}

// Close ends the channel.
func (c *Client) Close() error { return c.conn.Close() }

// In is the client of another namespace.
func (c *Client) In(namespace string) *Client {
	out := *c
	out.Namespace = namespace
	return &out
}

// Under is the client whose creations a lease holds.
func (c *Client) Under(lease string) *Client {
	out := *c
	out.lease = lease
	return &out
}

// WithOwnPods is the client whose pods are in its own namespace, where no kubelet
// sees them.
func (c *Client) WithOwnPods() *Client {
	out := *c
	out.pods = c.Namespace
	return &out
}

func (c *Client) outgoing(ctx context.Context) context.Context {
	kv := []string{headerNamespace, c.Namespace}
	if c.lease != "" {
		kv = append(kv, headerLease, c.lease)
	}
	if c.pods != "" {
		kv = append(kv, headerPods, c.pods)
	}
	return metadata.AppendToOutgoingContext(ctx, kv...)
}

// Invoke implements grpc.ClientConnInterface.
func (c *Client) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	if c.Trace != nil {
		begin := time.Now()
		defer func() { c.Trace(method, time.Since(begin)) }()
	}
	return c.native(ctx, c.conn.Invoke(c.outgoing(ctx), method, args, reply, opts...))
}

// NewStream implements grpc.ClientConnInterface.
func (c *Client) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := c.conn.NewStream(c.outgoing(ctx), desc, method, opts...)
	if err != nil {
		return nil, c.native(ctx, err)
	}
	return nativeStream{s, c}, nil
}

// nativeStream turns the errors of a stream.
type nativeStream struct {
	grpc.ClientStream
	c *Client
}

func (s nativeStream) RecvMsg(m any) error { return s.c.native(s.Context(), s.ClientStream.RecvMsg(m)) }
func (s nativeStream) SendMsg(m any) error { return s.c.native(s.Context(), s.ClientStream.SendMsg(m)) }

// The services of containerd's API and of the CRI.

func (c *Client) Containers() containersapi.ContainersClient {
	return containersapi.NewContainersClient(c)
}
func (c *Client) Content() contentapi.ContentClient { return contentapi.NewContentClient(c) }
func (c *Client) Diffs() diffapi.DiffClient         { return diffapi.NewDiffClient(c) }
func (c *Client) Events() eventsapi.EventsClient    { return eventsapi.NewEventsClient(c) }
func (c *Client) Images() imagesapi.ImagesClient    { return imagesapi.NewImagesClient(c) }
func (c *Client) Leases() leasesapi.LeasesClient    { return leasesapi.NewLeasesClient(c) }
func (c *Client) Namespaces() namespacesapi.NamespacesClient {
	return namespacesapi.NewNamespacesClient(c)
}
func (c *Client) Snapshots() snapshotsapi.SnapshotsClient { return snapshotsapi.NewSnapshotsClient(c) }
func (c *Client) Tasks() tasksapi.TasksClient             { return tasksapi.NewTasksClient(c) }
func (c *Client) Streams() streamingapi.StreamingClient   { return streamingapi.NewStreamingClient(c) }
func (c *Client) Transfers() transferapi.TransferClient   { return transferapi.NewTransferClient(c) }
func (c *Client) Version() versionapi.VersionClient       { return versionapi.NewVersionClient(c) }
func (c *Client) Pods() cri.RuntimeServiceClient          { return cri.NewRuntimeServiceClient(c) }
func (c *Client) PodImages() cri.ImageServiceClient       { return cri.NewImageServiceClient(c) }
func (c *Client) Introspection() introspectionapi.IntrospectionClient {
	return introspectionapi.NewIntrospectionClient(c)
}
