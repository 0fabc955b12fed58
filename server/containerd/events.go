package containerd

import (
	"context"
	"time"

	api "github.com/containerd/containerd/api/services/events/v1"
	ttrpcapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/engine/event"
)

// Events serves containerd.services.events.v1.
type Events struct {
	api.UnimplementedEventsServer
	Exchange *event.Exchange
}

func fromEnvelope(e *types.Envelope) event.Envelope {
	out := event.Envelope{Namespace: e.GetNamespace(), Topic: e.GetTopic(), Event: e.GetEvent()}
	if t := e.GetTimestamp(); t != nil {
		out.Time = t.AsTime()
	}
	return out
}

func (s Events) Publish(ctx context.Context, r *api.PublishRequest) (*emptypb.Empty, error) {
	sc, err := scope(ctx)
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, s.Exchange.Publish(event.Envelope{Time: time.Now(), Namespace: sc.Namespace, Topic: r.GetTopic(), Event: r.GetEvent()})
}

func (s Events) Forward(_ context.Context, r *api.ForwardRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, s.Exchange.Publish(fromEnvelope(r.GetEnvelope()))
}

// Subscribe sends events of all namespaces: only its filters narrow it.
func (s Events) Subscribe(r *api.SubscribeRequest, out api.Events_SubscribeServer) error {
	sub, err := s.Exchange.Subscribe(r.GetFilters()...)
	if err != nil {
		return err
	}
	defer sub.Close()
	// The header tells the client that nothing published from now on is missed.
	if err := out.SendHeader(nil); err != nil {
		return err
	}
	for {
		all, err := sub.Next(out.Context())
		if err != nil {
			return err
		}
		for _, e := range all {
			if err := out.Send(&types.Envelope{Timestamp: stamp(e.Time), Namespace: e.Namespace, Topic: e.Topic, Event: e.Event}); err != nil {
				return err
			}
		}
	}
}

// ShimEvents serves containerd.services.events.ttrpc.v1: how shims report.
type ShimEvents struct {
	Exchange *event.Exchange
}

// Forward takes one event of a shim.
func (s ShimEvents) Forward(_ context.Context, r *ttrpcapi.ForwardRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, s.Exchange.Publish(fromEnvelope(r.GetEnvelope()))
}
