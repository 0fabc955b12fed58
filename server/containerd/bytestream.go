package containerd

import (
	"errors"
	"io"

	"github.com/containerd/containerd/api/types/transfer"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/base/errs"
)

// Bytes over a stream go in pieces of at most pieceSize; the reader grants how
// many the writer may have under way (protocols.md 1.9).
const (
	pieceSize = 32 << 10
	window    = 1 << 20
)

func packed(m proto.Message) (*anypb.Any, error) {
	b, err := proto.Marshal(m)
	if err != nil {
		return nil, err
	}
	return &anypb.Any{TypeUrl: string(m.ProtoReflect().Descriptor().FullName()), Value: b}, nil
}

// byteReader reads what a client sends.
type byteReader struct {
	s       *stream
	rest    []byte
	granted int // bytes the client may still send
	err     error
}

func newByteReader(s *stream) *byteReader { return &byteReader{s: s} }

// Read implements io.Reader; io.EOF is the client's end of the stream.
func (r *byteReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		if r.err = r.next(); r.err != nil {
			return 0, r.err
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func (r *byteReader) next() error {
	if r.granted < window/2 {
		m, err := packed(&transfer.WindowUpdate{Update: window})
		if err != nil {
			return err
		}
		if err := r.s.send(m); err != nil {
			return err
		}
		r.granted += window
	}
	m, err := r.s.recv()
	if err != nil {
		return err
	}
	var d transfer.Data
	if err := m.UnmarshalTo(&d); err != nil {
		return errs.New(errs.InvalidArgument, "stream: expected data: %v", err)
	}
	r.granted -= len(d.GetData())
	r.rest = d.GetData()
	return nil
}

// byteWriter sends bytes to a client.
type byteWriter struct {
	s       *stream
	granted int
}

func newByteWriter(s *stream) *byteWriter { return &byteWriter{s: s} }

// Write implements io.Writer; it waits for the client to grant room.
func (w *byteWriter) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		for w.granted <= 0 {
			if err := w.wait(); err != nil {
				return done, err
			}
		}
		n := min(len(p)-done, pieceSize, w.granted)
		m, err := packed(&transfer.Data{Data: p[done : done+n]})
		if err != nil {
			return done, err
		}
		if err := w.s.send(m); err != nil {
			return done, err
		}
		w.granted -= n
		done += n
	}
	return done, nil
}

func (w *byteWriter) wait() error {
	m, err := w.s.recv()
	if errors.Is(err, io.EOF) {
		return io.ErrClosedPipe
	}
	if err != nil {
		return err
	}
	var u transfer.WindowUpdate
	if err := m.UnmarshalTo(&u); err != nil {
		return errs.New(errs.InvalidArgument, "stream: expected a window update: %v", err)
	}
	w.granted += int(u.GetUpdate())
	return nil
}
