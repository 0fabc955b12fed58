package attach

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

func TestFrames(t *testing.T) {
	var wire bytes.Buffer
	c := NewClient(&wire)
	long := bytes.Repeat([]byte{'x'}, 2*MaxData+1)
	if n, err := c.Write(long); n != len(long) || err != nil {
		t.Fatal(n, err)
	}
	if err := errors.Join(c.Resize(80, 24), c.CloseStdin()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(nil); err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct {
		kind Kind
		size int
	}{{Stdin, MaxData}, {Stdin, MaxData}, {Stdin, 1}, {Resize, 4}, {CloseStdin, 0}, {Stdin, 0}} {
		f, err := c.Next()
		if err != nil || f.Kind != want.kind || len(f.Data) != want.size {
			t.Fatalf("got %d of %d bytes (%v), want %+v", f.Kind, len(f.Data), err, want)
		}
		if columns, rows, ok := Size(f.Data); f.Kind == Resize && (columns != 80 || rows != 24 || !ok) {
			t.Errorf("size %dx%d", columns, rows)
		}
	}
	if _, err := c.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
	if s, ok := Status(AppendStatus(nil, 137)); s != 137 || !ok {
		t.Errorf("status %d", s)
	}
	for _, short := range [][]byte{nil, {1}, {1, 2, 3}, {1, 2, 3, 4, 5}} {
		if _, _, ok := Size(short); ok {
			t.Errorf("%v is a size", short)
		}
		if _, ok := Status(short); ok {
			t.Errorf("%v is a status", short)
		}
	}
}

// What a peer sends ends in frames or an error, and takes no more memory than came.
func FuzzRead(f *testing.F) {
	f.Add(Append(Append(nil, Hello, []byte{1, 7}), Stdout, []byte("text")))
	f.Add([]byte{0, 0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{17, 0, 0, 0, 9, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		var buf []byte
		var again []byte
		for {
			fr, b, err := Read(r, buf)
			if cap(b) > MaxData {
				t.Fatalf("a buffer of %d bytes", cap(b))
			}
			if buf = b; err != nil {
				break
			}
			again = Append(again, fr.Kind, fr.Data)
		}
		if !bytes.HasPrefix(data, again) {
			t.Errorf("%x was read as %x", data, again)
		}
	})
}
