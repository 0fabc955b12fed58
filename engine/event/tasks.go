package event

import (
	"time"

	eventsv1 "github.com/containerd/containerd/api/events"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Ended is the end of a container's init that its shim could not report.
type Ended struct {
	Namespace, Container string
	Pid, Status          uint32
	At                   time.Time
}

// TaskEnded publishes exit and deletion in the shim's place.
func (x *Exchange) TaskEnded(e Ended) error {
	at := timestamppb.New(e.At)
	for _, m := range []struct {
		topic string
		body  proto.Message
	}{
		{"/tasks/exit", &eventsv1.TaskExit{ContainerID: e.Container, ID: e.Container, Pid: e.Pid, ExitStatus: e.Status, ExitedAt: at}},
		{"/tasks/delete", &eventsv1.TaskDelete{ContainerID: e.Container, ID: e.Container, Pid: e.Pid, ExitStatus: e.Status, ExitedAt: at}},
	} {
		any, err := Pack(m.body)
		if err != nil {
			return err
		}
		if err := x.Publish(Envelope{Time: time.Now(), Namespace: e.Namespace, Topic: m.topic, Event: any}); err != nil {
			return err
		}
	}
	return nil
}

// TaskExited reads the end of a process out of an event: exec is "" for a
// container's init.
func (e Envelope) TaskExited() (ended Ended, exec string, ok bool) {
	if e.Topic != "/tasks/exit" {
		return Ended{}, "", false
	}
	var m eventsv1.TaskExit
	if err := e.Event.UnmarshalTo(&m); err != nil {
		return Ended{}, "", false
	}
	if exec = m.GetID(); exec == m.GetContainerID() {
		exec = ""
	}
	return Ended{Namespace: e.Namespace, Container: m.GetContainerID(), Pid: m.GetPid(), Status: m.GetExitStatus(), At: m.GetExitedAt().AsTime()}, exec, true
}

// TaskOOM reads out of an event which container met its memory limit.
func (e Envelope) TaskOOM() (container string, ok bool) {
	if e.Topic != "/tasks/oom" {
		return "", false
	}
	var m eventsv1.TaskOOM
	if err := e.Event.UnmarshalTo(&m); err != nil {
		return "", false
	}
	return m.GetContainerID(), true
}

// ContainerOf reads out of an event of a task or a container whose it is.
func (e Envelope) ContainerOf() (string, bool) {
	m, err := e.Event.UnmarshalNew()
	if err != nil {
		return "", false
	}
	switch m := m.(type) {
	case interface{ GetContainerID() string }:
		return m.GetContainerID(), true
	case interface{ GetID() string }:
		return m.GetID(), true
	}
	return "", false
}
