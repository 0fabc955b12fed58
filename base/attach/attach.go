// Package attach is the format that shims and their attach clients speak over a
// container's attach socket, and a client for a connection that the caller has
// made. It dials nothing and starts no goroutine.
//
// A frame:
//
//	+------+------------------+---------
//	| kind | length, 4 bytes  | data …      big endian, at most 64 KiB of data
//	+------+------------------+---------
//
//	shim → client   Hello first, then Stdout and Stderr, at last Exit; then it closes
//	client → shim   Stdin, CloseStdin, Resize, in any order; Reopen, which is answered
//
// A client that means to write to stdin says so with an empty Stdin frame: where
// stdin is taken once only, its leaving is the end of the container's stdin. A
// client that does not read fast enough is cut off: its stream ends without Exit.
package attach

import (
	"encoding/binary"
	"fmt"
	"io"
)

// Kind is the first byte of a frame.
type Kind byte

// What clients send.
const (
	Stdin      Kind = 0 // bytes for the container
	CloseStdin Kind = 1 // this client writes no more
	Resize     Kind = 2 // columns, rows: 2 bytes each
	Reopen     Kind = 3 // the log goes on in a new file
)

// What shims send.
const (
	Hello  Kind = 16 // version, flags: 1 byte each
	Stdout Kind = 17
	Stderr Kind = 18
	Exit   Kind = 19 // exit status: 4 bytes

	Reopened Kind = 20 // answer to Reopen: what went wrong, or nothing
)

// Version is the first byte of Hello.
const Version = 1

// Flags of Hello.
const (
	FlagTerminal  = 1 << iota // stdout and stderr are one terminal
	FlagStdin                 // the container takes stdin from its clients
	FlagStdinOnce             // and only from the first that writes, until it leaves
)

// Limits of a frame, in bytes.
const (
	HeaderSize = 5
	MaxData    = 64 << 10
)

// Frame is one frame.
type Frame struct {
	Kind Kind
	Data []byte
}

// Append writes a frame behind b. Longer data than MaxData panics: cut it before.
func Append(b []byte, k Kind, data []byte) []byte {
	if len(data) > MaxData {
		panic("attach: frame is too long")
	}
	b = append(b, byte(k))
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// Read reads one frame into buf, which is grown if need be; the frame's data is
// part of the buffer that is returned.
func Read(r io.Reader, buf []byte) (Frame, []byte, error) {
	var h [HeaderSize]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return Frame{}, buf, err
	}
	n := binary.BigEndian.Uint32(h[1:])
	if n > MaxData {
		return Frame{}, buf, fmt.Errorf("attach frame of %d bytes, at most %d are allowed", n, MaxData)
	}
	if cap(buf) < int(n) {
		buf = make([]byte, n)
	}
	f := Frame{Kind(h[0]), buf[:n]}
	if _, err := io.ReadFull(r, f.Data); err != nil {
		return Frame{}, buf, io.ErrUnexpectedEOF
	}
	return f, buf, nil
}

// AppendSize writes the data of Resize.
func AppendSize(b []byte, columns, rows uint16) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, columns), rows)
}

// Size reads the data of Resize.
func Size(data []byte) (columns, rows uint16, ok bool) {
	if len(data) != 4 {
		return 0, 0, false
	}
	return binary.BigEndian.Uint16(data), binary.BigEndian.Uint16(data[2:]), true
}

// AppendStatus writes the data of Exit.
func AppendStatus(b []byte, status uint32) []byte { return binary.BigEndian.AppendUint32(b, status) }

// Status reads the data of Exit.
func Status(data []byte) (status uint32, ok bool) {
	if len(data) != 4 {
		return 0, false
	}
	return binary.BigEndian.Uint32(data), true
}

// Client is one end of a connection to an attach socket. Next may be called
// beside the senders; of those, one at a time.
type Client struct {
	conn io.ReadWriter
	buf  []byte
}

// NewClient uses conn, which stays the caller's to close.
func NewClient(conn io.ReadWriter) *Client { return &Client{conn: conn} }

// Next returns the next frame of the shim; its data is valid until the next call.
// io.EOF without a frame Exit before it means that the shim has cut us off or died.
func (c *Client) Next() (Frame, error) {
	f, buf, err := Read(c.conn, c.buf)
	c.buf = buf
	return f, err
}

// Write sends bytes for stdin; no bytes say that this client means to write.
func (c *Client) Write(p []byte) (int, error) {
	sent := 0
	for {
		part := p[sent:min(len(p), sent+MaxData)]
		if err := c.send(Stdin, part); err != nil {
			return sent, err
		}
		if sent += len(part); sent == len(p) {
			return sent, nil
		}
	}
}

// CloseStdin says that nothing more will be written.
func (c *Client) CloseStdin() error { return c.send(CloseStdin, nil) }

// Resize sets the size of the terminal, in characters.
func (c *Client) Resize(columns, rows uint16) error {
	return c.send(Resize, AppendSize(nil, columns, rows))
}

// Reopen asks for a new log file; Next brings the answer.
func (c *Client) Reopen() error { return c.send(Reopen, nil) }

func (c *Client) send(k Kind, data []byte) error {
	_, err := c.conn.Write(Append(make([]byte, 0, HeaderSize+len(data)), k, data))
	return err
}
