// Package wire writes and reads the few protobuf messages that a shim speaks. It
// is small on purpose: descriptors and reflection cost every shim memory. It owns
// no state. Unknown fields are skipped, absent fields keep their zero value, and
// text that is not UTF-8 is refused, as generated code does; the tests compare it
// with containerd's generated types in both directions.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"
	"unicode/utf8"
)

// The wire types of https://protobuf.dev/programming-guides/encoding/.
const (
	kindVarint  = 0
	kindFixed64 = 1
	kindBytes   = 2
	kindStart   = 3
	kindEnd     = 4
	kindFixed32 = 5
)

// maxGroups bounds how deep the obsolete groups may nest before we refuse to skip them.
const maxGroups = 64

var errCut = errors.New("message is cut short")

// Message is anything that can be written.
type Message interface {
	// Append writes the message behind b.
	Append(b []byte) []byte
}

// Decoder is anything that can be read. Text is copied; byte fields point into b.
type Decoder interface {
	Decode(b []byte) error
}

// field is one field as it lies on the wire.
type field struct {
	num  int
	kind int
	n    uint64 // kindVarint
	data []byte // kindBytes
}

// fields calls fn for each field of b, in order.
func fields(b []byte, fn func(field) error) error {
	for len(b) > 0 {
		f, rest, err := next(b, 0)
		if err != nil {
			return err
		}
		b = rest
		if f.kind == kindVarint || f.kind == kindBytes {
			if err := fn(f); err != nil {
				return fmt.Errorf("field %d: %w", f.num, err)
			}
		}
	}
	return nil
}

// next reads the first field of b.
func next(b []byte, depth int) (field, []byte, error) {
	tag, n := binary.Uvarint(b)
	if n <= 0 {
		return field{}, nil, errCut
	}
	b = b[n:]
	f := field{num: int(tag >> 3), kind: int(tag & 7)}
	if tag>>3 == 0 || tag>>3 > 1<<29-1 {
		return field{}, nil, fmt.Errorf("field number %d is not allowed", tag>>3)
	}
	switch f.kind {
	case kindVarint:
		if f.n, n = binary.Uvarint(b); n <= 0 {
			return field{}, nil, errCut
		}
		return f, b[n:], nil
	case kindFixed64:
		return skip(f, b, 8)
	case kindFixed32:
		return skip(f, b, 4)
	case kindBytes:
		size, n := binary.Uvarint(b)
		if n <= 0 || size > uint64(len(b)-n) {
			return field{}, nil, errCut
		}
		f.data = b[n : n+int(size)]
		return f, b[n+int(size):], nil
	case kindStart:
		return skipGroup(f, b, depth+1)
	}
	return field{}, nil, fmt.Errorf("field %d has wire type %d", f.num, f.kind)
}

func skip(f field, b []byte, n int) (field, []byte, error) {
	if len(b) < n {
		return field{}, nil, errCut
	}
	return f, b[n:], nil
}

func skipGroup(f field, b []byte, depth int) (field, []byte, error) {
	if depth > maxGroups {
		return field{}, nil, errors.New("groups are nested too deep")
	}
	for {
		tag, n := binary.Uvarint(b)
		if n <= 0 {
			return field{}, nil, errCut
		}
		if tag&7 == kindEnd {
			if int(tag>>3) != f.num {
				return field{}, nil, fmt.Errorf("group %d ends as %d", f.num, tag>>3)
			}
			return f, b[n:], nil
		}
		_, rest, err := next(b, depth)
		if err != nil {
			return field{}, nil, err
		}
		b = rest
	}
}

// The getters leave dst alone if the field has another wire type, as protobuf does.

func (f field) text(dst *string) error {
	if f.kind != kindBytes {
		return nil
	}
	if !utf8.Valid(f.data) {
		return errors.New("text is not UTF-8")
	}
	*dst = string(f.data)
	return nil
}

func (f field) texts(dst *[]string) error {
	var s string
	if f.kind != kindBytes {
		return nil
	}
	if err := f.text(&s); err != nil {
		return err
	}
	*dst = append(*dst, s)
	return nil
}

func (f field) bytes(dst *[]byte) error {
	if f.kind == kindBytes {
		*dst = f.data
	}
	return nil
}

func (f field) bool(dst *bool) error {
	if f.kind == kindVarint {
		*dst = f.n != 0
	}
	return nil
}

func (f field) uint32(dst *uint32) error {
	if f.kind == kindVarint {
		*dst = uint32(f.n)
	}
	return nil
}

func (f field) int32(dst *int32) error {
	if f.kind == kindVarint {
		*dst = int32(f.n)
	}
	return nil
}

func (f field) int64(dst *int64) error {
	if f.kind == kindVarint {
		*dst = int64(f.n)
	}
	return nil
}

func (f field) message(dst Decoder) error {
	if f.kind != kindBytes {
		return nil
	}
	return dst.Decode(f.data)
}

// pair reads an entry of a map<string, string>.
func (f field) pair(dst *map[string]string) error {
	if f.kind != kindBytes {
		return nil
	}
	var k, v string
	err := fields(f.data, func(f field) error {
		switch f.num {
		case 1:
			return f.text(&k)
		case 2:
			return f.text(&v)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if *dst == nil {
		*dst = map[string]string{}
	}
	(*dst)[k] = v
	return nil
}

// The putters write nothing for a zero value, as proto3 does.

func putTag(b []byte, num, kind int) []byte {
	return binary.AppendUvarint(b, uint64(num)<<3|uint64(kind))
}

func putUint(b []byte, num int, v uint64) []byte {
	if v == 0 {
		return b
	}
	return binary.AppendUvarint(putTag(b, num, kindVarint), v)
}

// putInt writes int32 and int64 fields: negative numbers take ten bytes.
func putInt(b []byte, num int, v int64) []byte { return putUint(b, num, uint64(v)) }

func putBool(b []byte, num int, v bool) []byte {
	if !v {
		return b
	}
	return putUint(b, num, 1)
}

func putDouble(b []byte, num int, v float64) []byte {
	if v == 0 {
		return b
	}
	return binary.LittleEndian.AppendUint64(putTag(b, num, kindFixed64), math.Float64bits(v))
}

func putText(b []byte, num int, s string) []byte {
	if s == "" {
		return b
	}
	b = binary.AppendUvarint(putTag(b, num, kindBytes), uint64(len(s)))
	return append(b, s...)
}

func putBytes(b []byte, num int, v []byte) []byte {
	if len(v) == 0 {
		return b
	}
	b = binary.AppendUvarint(putTag(b, num, kindBytes), uint64(len(v)))
	return append(b, v...)
}

func putTexts(b []byte, num int, list []string) []byte {
	for _, s := range list {
		b = binary.AppendUvarint(putTag(b, num, kindBytes), uint64(len(s)))
		b = append(b, s...)
	}
	return b
}

// putNested writes a message field, also when it is empty: presence has meaning.
func putNested(b []byte, num int, write func([]byte) []byte) []byte {
	b = putTag(b, num, kindBytes)
	start := len(b)
	b = write(b)
	var size [binary.MaxVarintLen64]byte
	n := binary.PutUvarint(size[:], uint64(len(b)-start))
	b = append(b, size[:n]...)
	copy(b[start+n:], b[start:len(b)-n])
	copy(b[start:], size[:n])
	return b
}

// putTime writes a google.protobuf.Timestamp. The zero time is written as the
// year 1: receivers test for that with time.Time.IsZero.
func putTime(b []byte, num int, t time.Time) []byte {
	return putNested(b, num, func(b []byte) []byte {
		return putInt(putInt(b, 1, t.Unix()), 2, int64(t.Nanosecond()))
	})
}
