package event

import (
	"time"

	eventsv1 "github.com/containerd/containerd/api/events"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func (x *Exchange) tell(ns, topic string, body proto.Message) error {
	any, err := Pack(body)
	if err != nil {
		return err
	}
	return x.Publish(Envelope{Time: time.Now(), Namespace: ns, Topic: topic, Event: any})
}

// SandboxCreated publishes that a sandbox was made.
func (x *Exchange) SandboxCreated(ns, id string) error {
	return x.tell(ns, "/sandboxes/create", &eventsv1.SandboxCreate{SandboxID: id})
}

// SandboxStarted publishes that a sandbox was started.
func (x *Exchange) SandboxStarted(ns, id string) error {
	return x.tell(ns, "/sandboxes/start", &eventsv1.SandboxStart{SandboxID: id})
}

// SandboxEnded publishes how a sandbox ended.
func (x *Exchange) SandboxEnded(ns, id string, status uint32, at time.Time) error {
	return x.tell(ns, "/sandboxes/exit", &eventsv1.SandboxExit{SandboxID: id, ExitStatus: status, ExitedAt: timestamppb.New(at)})
}
