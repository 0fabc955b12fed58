// Package ttrpc is the part of the ttrpc protocol that a shim needs: unary calls,
// time limits, metadata and status errors. It owns the connections it is given and
// one goroutine for each, and one for each running call. It has no streams.
//
// A frame (https://github.com/containerd/ttrpc/blob/main/PROTOCOL.md):
//
//	 0         4         8    9    10
//	+---------+---------+----+----+--------
//	| length  | stream  |type|flag| data …
//	+---------+---------+----+----+--------
//
// Numbers are big endian; the client's streams are odd and ascend; a request is
// type 1, its response type 2 on the same stream.
package ttrpc

import (
	"encoding/binary"
	"errors"
	"io"
)

const (
	headerSize   = 10
	maxData      = 4 << 20
	typeRequest  = 1
	typeResponse = 2
	typeData     = 3
)

// errNotOurs ends a connection: its first byte is reserved and must be zero, so
// what comes is not ttrpc.
var errNotOurs = errors.New("peer does not speak ttrpc")

type header struct {
	length uint32
	stream uint32
	kind   uint8
	flags  uint8
}

func readHeader(r io.Reader, buf []byte) (header, error) {
	buf = buf[:headerSize]
	if _, err := io.ReadFull(r, buf); err != nil {
		return header{}, err
	}
	h := header{binary.BigEndian.Uint32(buf), binary.BigEndian.Uint32(buf[4:]), buf[8], buf[9]}
	if buf[0] != 0 {
		return h, errNotOurs
	}
	return h, nil
}

// newFrame returns a buffer with room for the header; finish fills it in.
func newFrame() []byte { return make([]byte, headerSize, 256) }

func finish(frame []byte, stream uint32, kind uint8) []byte {
	binary.BigEndian.PutUint32(frame, uint32(len(frame)-headerSize))
	binary.BigEndian.PutUint32(frame[4:], stream)
	frame[8], frame[9] = kind, 0
	return frame
}
