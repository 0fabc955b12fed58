package containerd

import (
	"context"
	"errors"
	"io"
	"sync"

	api "github.com/containerd/containerd/api/services/streaming/v1"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/base/errs"
)

// Streams serves containerd.services.streaming.v1: side channels that a client
// opens first and names in a later request.
//
//	client ── StreamInit{id} ──> server
//	client <── Empty ──────────  registered: the id may be used now
//	client <── Any … Any ──────> whoever serves the request that names the id
type Streams struct {
	api.UnimplementedStreamingServer
	mu  sync.Mutex
	all map[string]*stream // by namespace and id
}

// NewStreams returns the service without streams.
func NewStreams() *Streams { return &Streams{all: map[string]*stream{}} }

// stream is one open side channel. Whoever takes it ends it with close.
type stream struct {
	wire  api.Streaming_StreamServer
	taken bool
	done  chan struct{}
	once  sync.Once
}

// Stream holds one client's channel open until it is closed from either side.
func (s *Streams) Stream(wire api.Streaming_StreamServer) error {
	ctx := wire.Context()
	sc, err := scope(ctx)
	if err != nil {
		return err
	}
	first, err := wire.Recv()
	if err != nil {
		return err
	}
	var init api.StreamInit
	if err := first.UnmarshalTo(&init); err != nil {
		return errs.New(errs.InvalidArgument, "the first message of a stream must be a StreamInit: %v", err)
	}
	if init.GetID() == "" {
		return errs.New(errs.InvalidArgument, "a stream needs an id")
	}
	key := sc.Namespace + "\x00" + init.GetID()
	st := &stream{wire: wire, done: make(chan struct{})}
	if err := s.register(key, st); err != nil {
		return err
	}
	defer s.drop(key)
	ack, err := anypb.New(&emptypb.Empty{})
	if err != nil {
		return err
	}
	ack.TypeUrl = "google.protobuf.Empty" // as typeurl writes it
	if err := wire.Send(ack); err != nil {
		return err
	}
	select {
	case <-st.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *Streams) register(key string, st *stream) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all[key] != nil {
		return errs.New(errs.AlreadyExists, "a stream with this id is open")
	}
	s.all[key] = st
	return nil
}

func (s *Streams) drop(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, key)
}

// take gives a stream to the one request that uses it.
func (s *Streams) take(ns, sid string) (*stream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.all[ns+"\x00"+sid]
	if st == nil {
		return nil, errs.New(errs.NotFound, "stream %q is not open", sid)
	}
	if st.taken {
		return nil, errs.New(errs.FailedPrecondition, "stream %q is used by another request", sid)
	}
	st.taken = true
	return st, nil
}

func (s *stream) close() { s.once.Do(func() { close(s.done) }) }

func (s *stream) send(m *anypb.Any) error { return s.wire.Send(m) }

// recv waits for a message; io.EOF when the client has ended its side.
func (s *stream) recv() (*anypb.Any, error) {
	m, err := s.wire.Recv()
	if err != nil && !errors.Is(err, io.EOF) && s.wire.Context().Err() != nil {
		return nil, context.Cause(s.wire.Context())
	}
	return m, err
}
