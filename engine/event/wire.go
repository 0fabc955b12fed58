package event

import (
	"fmt"
	"log/slog"

	eventsv1 "github.com/containerd/containerd/api/events"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/store"
)

// Pack puts a message into an Any whose URL is the bare type name, as containerd's
// own clients and shims write it (protocols.md part 0).
func Pack(m proto.Message) (*anypb.Any, error) {
	b, err := proto.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", m, err)
	}
	return &anypb.Any{TypeUrl: string(m.ProtoReflect().Descriptor().FullName()), Value: b}, nil
}

// FromStore publishes what transactions collected. It is the store's publish
// hook.
func (x *Exchange) FromStore(log *slog.Logger) func([]store.Event) {
	return func(all []store.Event) {
		for _, e := range all {
			any, err := Pack(message(e.Body))
			if err == nil {
				err = x.Publish(Envelope{Time: e.At, Namespace: e.Namespace, Topic: e.Topic, Event: any})
			}
			if err != nil {
				log.Error("event is lost", "topic", e.Topic, "namespace", e.Namespace, "error", err)
			}
		}
	}
}

// message gives a store event its wire form.
func message(body any) proto.Message {
	switch b := body.(type) {
	case store.NamespaceCreate:
		return &eventsv1.NamespaceCreate{Name: b.Name, Labels: b.Labels}
	case store.NamespaceUpdate:
		return &eventsv1.NamespaceUpdate{Name: b.Name, Labels: b.Labels}
	case store.NamespaceDelete:
		return &eventsv1.NamespaceDelete{Name: b.Name}
	case store.ImageCreate:
		return &eventsv1.ImageCreate{Name: b.Name, Labels: b.Labels}
	case store.ImageUpdate:
		return &eventsv1.ImageUpdate{Name: b.Name, Labels: b.Labels}
	case store.ImageDelete:
		return &eventsv1.ImageDelete{Name: b.Name}
	case store.ContentCreate:
		return &eventsv1.ContentCreate{Digest: b.Digest, Size: b.Size}
	case store.ContentDelete:
		return &eventsv1.ContentDelete{Digest: b.Digest}
	case store.SnapshotPrepare:
		return &eventsv1.SnapshotPrepare{Key: b.Key, Parent: b.Parent, Snapshotter: b.Snapshotter}
	case store.SnapshotCommit:
		return &eventsv1.SnapshotCommit{Key: b.Key, Name: b.Name, Snapshotter: b.Snapshotter}
	case store.SnapshotRemove:
		return &eventsv1.SnapshotRemove{Key: b.Key, Snapshotter: b.Snapshotter}
	case store.ContainerCreate:
		r := &eventsv1.ContainerCreate_Runtime{Name: b.Runtime}
		if !b.Options.Empty() {
			r.Options = &anypb.Any{TypeUrl: b.Options.TypeURL, Value: b.Options.Value}
		}
		return &eventsv1.ContainerCreate{ID: b.ID, Image: b.Image, Runtime: r}
	case store.ContainerUpdate:
		return &eventsv1.ContainerUpdate{ID: b.ID, Image: b.Image, Labels: b.Labels, SnapshotKey: b.SnapshotKey}
	case store.ContainerDelete:
		return &eventsv1.ContainerDelete{ID: b.ID}
	}
	panic(fmt.Sprintf("no wire form for %T", body)) // a new body without its line here
}
