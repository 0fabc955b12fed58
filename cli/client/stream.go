package client

import (
	"context"
	"errors"
	"fmt"
	"io"

	streamingapi "github.com/containerd/containerd/api/services/streaming/v1"
	"github.com/containerd/containerd/api/types/transfer"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/base/id"
)

// Stream is a side channel of a request, opened before it.
type Stream struct {
	ID   string
	wire grpc.BidiStreamingClient[anypb.Any, anypb.Any]
}

// pack wraps a message with the bare name as its type, as typeurl writes it.
func pack(m proto.Message) (*anypb.Any, error) {
	b, err := proto.Marshal(m)
	return &anypb.Any{TypeUrl: string(m.ProtoReflect().Descriptor().FullName()), Value: b}, err
}

// OpenStream opens a side channel; it ends with ctx.
func (c *Client) OpenStream(ctx context.Context) (*Stream, error) {
	wire, err := c.Streams().Stream(ctx)
	if err != nil {
		return nil, err
	}
	s := &Stream{ID: "berth-" + id.New(12), wire: wire}
	if err := s.Send(&streamingapi.StreamInit{ID: s.ID}); err != nil {
		return nil, fmt.Errorf("open side stream: %w", err)
	}
	if _, err := wire.Recv(); err != nil { // the acknowledgement: the id may be used
		return nil, fmt.Errorf("open side stream: %w", err)
	}
	return s, nil
}

// Send sends one message.
func (s *Stream) Send(m proto.Message) error {
	any, err := pack(m)
	if err != nil {
		return err
	}
	return s.wire.Send(any)
}

// Receive reads one message into m; io.EOF when the daemon has ended the stream.
func (s *Stream) Receive(m proto.Message) error {
	any, err := s.wire.Recv()
	if err != nil {
		return err
	}
	return any.UnmarshalTo(m)
}

// pieceSize is how many bytes go in one message, as the protocol limits it.
const pieceSize = 32 << 10

// SendBytes sends everything of r, as the reader at the other end grants it, and
// ends our side of the stream.
func (s *Stream) SendBytes(r io.Reader) error {
	buf := make([]byte, pieceSize)
	granted := 0
	for {
		for granted <= 0 {
			var w transfer.WindowUpdate
			if err := s.Receive(&w); err != nil {
				if errors.Is(err, io.EOF) { // the other end wants no more
					return nil
				}
				return err
			}
			granted += int(w.GetUpdate())
		}
		n, err := r.Read(buf[:min(len(buf), granted)])
		if n > 0 {
			granted -= n
			if err := s.Send(&transfer.Data{Data: buf[:n]}); err != nil {
				if errors.Is(err, io.EOF) {
					return nil
				}
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return s.wire.CloseSend()
		}
		if err != nil {
			return err
		}
	}
}

// window is how many bytes the sender may have under way.
const window = 1 << 20

// ReceiveBytes writes what comes to w until the stream ends.
func (s *Stream) ReceiveBytes(w io.Writer) error {
	granted := 0
	for {
		if granted < window/2 {
			if err := s.Send(&transfer.WindowUpdate{Update: window}); err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			granted += window
		}
		var d transfer.Data
		if err := s.Receive(&d); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		granted -= len(d.GetData())
		if _, err := w.Write(d.GetData()); err != nil {
			return err
		}
	}
}
