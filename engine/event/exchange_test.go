package event

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	eventsv1 "github.com/containerd/containerd/api/events"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/store"
)

func publish(t *testing.T, x *Exchange, ns, topic string, exit uint32) {
	t.Helper()
	any, err := Pack(&eventsv1.TaskExit{ContainerID: "c1", ExitStatus: exit})
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Publish(Envelope{Time: time.Now(), Namespace: ns, Topic: topic, Event: any}); err != nil {
		t.Fatal(err)
	}
}

func TestFiltersAndOrder(t *testing.T) {
	x := New()
	for f, want := range map[string]int{
		"":                                   3,
		`namespace==moby,topic~=|^/tasks/|`:  1,
		`topic=="/tasks/exit"`:               2,
		`event.container_id==c1`:             3,
		`event.exit_status==7`:               1,
		`event.container_id==c2`:             0,
		`event.nothing`:                      0,
		`topic=="/tasks/exit",namespace==k8`: 1,
	} {
		s, err := x.Subscribe(f)
		if err != nil {
			t.Fatal(err)
		}
		publish(t, x, "moby", "/tasks/exit", 7)
		publish(t, x, "k8", "/tasks/exit", 8)
		publish(t, x, "k8", "/images/create", 9)
		var got []Envelope
		if want > 0 {
			if got, err = s.Next(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if len(got) != want || len(s.queue) != 0 {
			t.Errorf("%q: %d events, want %d", f, len(got), want)
		}
		s.Close()
	}
	if len(x.subs) != 0 {
		t.Error("subscriptions left")
	}
}

func TestBadEnvelopes(t *testing.T) {
	x := New()
	for _, e := range []Envelope{
		{Namespace: "a", Topic: "/a/b"}, {Namespace: "", Topic: "/a", Time: time.Now()}, {Namespace: "a", Topic: "a", Time: time.Now()},
		{Namespace: "a", Topic: "/", Time: time.Now()}, {Namespace: "a", Topic: "/a//b", Time: time.Now()}, {Namespace: "a/b", Topic: "/a", Time: time.Now()},
	} {
		if err := x.Publish(e); !errs.Is(err, errs.InvalidArgument) {
			t.Errorf("%+v: %v", e, err)
		}
	}
}

func TestSlowReaderIsDropped(t *testing.T) {
	x := New()
	s, _ := x.Subscribe()
	defer s.Close()
	for range MaxWaiting + 10 {
		publish(t, x, "a", "/tasks/exit", 0)
	}
	if _, err := s.Next(t.Context()); !errs.Is(err, errs.ResourceExhausted) {
		t.Fatal(err)
	}
}

func TestNextEndsWithContext(t *testing.T) {
	x := New()
	s, _ := x.Subscribe()
	defer s.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func TestStoreEventsHaveTheirTypes(t *testing.T) {
	x := New()
	s, _ := x.Subscribe()
	defer s.Close()
	x.FromStore(slog.Default())([]store.Event{
		{Namespace: "a", Topic: "/images/create", Body: store.ImageCreate{Name: "i"}, At: time.Now()},
		{Namespace: "a", Topic: "/containers/delete", Body: store.ContainerDelete{ID: "i"}, At: time.Now()},
	})
	got, err := s.Next(t.Context())
	if err != nil || len(got) != 2 || got[0].Event.TypeUrl != "containerd.services.images.v1.ImageCreate" || got[1].Event.TypeUrl != "containerd.events.ContainerDelete" {
		t.Fatal(got, err)
	}
}
