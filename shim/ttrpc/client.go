package ttrpc

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/berthd/berth/host/sock"
	"github.com/berthd/berth/shim/wire"
)

// Client makes one call at a time over one connection. It is not safe for
// concurrent use. After an error that is not a status of the other side it is of
// no more use.
type Client struct {
	conn *os.File
	next uint32
}

// Dial connects to the server whose socket is at path.
func Dial(path string, timeout time.Duration) (*Client, error) {
	f, err := sock.Dial(path, timeout)
	if err != nil {
		return nil, err
	}
	return &Client{conn: f, next: 1}, nil
}

// Close ends the connection.
func (c *Client) Close() { _ = c.conn.Close() }

// StatusError is an error that the server answered with.
type StatusError struct{ err error }

func (e *StatusError) Error() string { return e.err.Error() }
func (e *StatusError) Unwrap() error { return e.err }

// Call sends one request and waits for its response until the context's deadline.
// It returns the payload. An error of the server is a *StatusError.
func (c *Client) Call(ctx context.Context, service, method string, payload wire.Message, metadata ...wire.Pair) ([]byte, error) {
	req := wire.Request{Service: service, Method: method, Payload: payload.Append(nil), Metadata: metadata}
	deadline, ok := ctx.Deadline()
	if ok {
		req.TimeoutNano = time.Until(deadline).Nanoseconds()
	}
	_ = c.conn.SetDeadline(deadline)
	stream := c.next
	c.next += 2
	if _, err := c.conn.Write(finish(req.Append(newFrame()), stream, typeRequest)); err != nil {
		return nil, fmt.Errorf("call %s: %w", method, err)
	}
	for {
		var buf [headerSize]byte
		h, err := readHeader(c.conn, buf[:])
		if err == nil && h.length > maxData {
			err = errNotOurs
		}
		if err != nil {
			return nil, fmt.Errorf("call %s: %w", method, err)
		}
		if h.stream != stream || h.kind != typeResponse {
			if _, err := io.CopyN(io.Discard, c.conn, int64(h.length)); err != nil {
				return nil, fmt.Errorf("call %s: %w", method, err)
			}
			continue
		}
		data, err := readBody(c.conn, int(h.length))
		var resp wire.Response
		if err == nil {
			err = resp.Decode(data)
		}
		if err != nil {
			return nil, fmt.Errorf("call %s: read response: %w", method, err)
		}
		if err := fromStatus(resp.Status); err != nil {
			return nil, &StatusError{err}
		}
		return resp.Payload, nil
	}
}
