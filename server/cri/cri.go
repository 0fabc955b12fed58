// Package cri serves the Kubernetes container runtime interface: each method turns
// a message into one Go call and the result into a message. It owns no state; what
// a kubelet sees lives in one namespace of the daemon.
package cri

import (
	"context"
	"time"

	"google.golang.org/grpc/metadata"
	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/engine/image"
	"github.com/berthd/berth/engine/pod"
	"github.com/berthd/berth/store"
)

// Namespace holds what a kubelet makes: the one that containerd's tools look in.
const Namespace = "k8s.io"

// headerNamespace is set by berth's own command line alone, for pods that no kubelet
// shall see: it would end those that it does not know.
const headerNamespace = "berth-namespace"

// namespace is where a request's pods are.
func namespace(ctx context.Context) string {
	if v := metadata.ValueFromIncomingContext(ctx, headerNamespace); len(v) > 0 && v[0] != "" {
		return v[0]
	}
	return Namespace
}

// Streams hands out the addresses of streams: exec, attach, port-forward.
type Streams interface {
	GetExec(*api.ExecRequest) (*api.ExecResponse, error)
	GetAttach(*api.AttachRequest) (*api.AttachResponse, error)
	GetPortForward(*api.PortForwardRequest) (*api.PortForwardResponse, error)
}

// Runtime serves runtime.v1.RuntimeService.
type Runtime struct {
	api.UnimplementedRuntimeServiceServer
	Pods         *pod.Pods
	Streams      Streams
	BuildVersion string
}

// Images serves runtime.v1.ImageService.
type Images struct {
	api.UnimplementedImageServiceServer
	Store       *store.Store
	Images      *image.Images
	Snapshotter func(handler string) string // of a runtime; "" is the default one
	PullIdle    time.Duration               // a pull without progress is given up after it; 0: never
	Pinned      []string                    // names of images that a kubelet must not remove
}

func (s Images) scope(ctx context.Context) store.Scoped {
	return s.Store.In(store.Scope{Namespace: namespace(ctx)})
}

// batch is how many items one message of a streaming list holds.
const batch = 1000

// inBatches sends a list in messages of a bearable size.
func inBatches[T any](all []T, send func([]T) error) error {
	for len(all) > 0 {
		n := min(len(all), batch)
		if err := send(all[:n]); err != nil {
			return err
		}
		all = all[n:]
	}
	return nil
}
