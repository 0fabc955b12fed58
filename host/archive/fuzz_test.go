package archive

import (
	"bytes"
	"io"
	"testing"

	"github.com/berthd/berth/base/spec"
)

// FuzzApply unpacks whatever it is given next to a CANARY.
func FuzzApply(f *testing.F) {
	f.Add(layer(f, dir("d"), file("d/x", "1"), link("l", "../CANARY"), hard("h", "d/x"), file("l/y", "2"), file("d/.wh.z", ""), file("d/.wh..wh..opq", "")), uint8(0))
	f.Add(layer(f, file("../x", "1").xattr("user.k", "v"), link("a", "/"), file("a/../../CANARY/file", "x")), uint8(1))
	f.Add(sparseLayer(1<<20, []int64{0, 10, 4096, 100}), uint8(0))
	f.Fuzz(func(t *testing.T, data []byte, style uint8) {
		g := newGround(t)
		o := ApplyOptions{Whiteout: spec.Whiteout(style % 3), MaxBytes: 1 << 20, MaxEntries: 1000}
		res, err := Apply(t.Context(), g.root, bytes.NewReader(data), o)
		g.check()
		if err != nil {
			return
		}
		_ = Finish(t.Context(), g.root, res.Unresolved, []string{g.canary})
		g.check()
	})
}

// FuzzDecompress reads whatever it is given; it ends, and closes.
func FuzzDecompress(f *testing.F) {
	plain := layer(f, file("f", "text"))
	for _, m := range []string{ociGzip, ociZstd} {
		f.Add(compressed(f, m, plain), m)
	}
	f.Add(plain, ociTar)
	f.Add(plain, "")
	f.Fuzz(func(t *testing.T, data []byte, mediaType string) {
		r, err := Decompress(bytes.NewReader(data), mediaType)
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, io.LimitReader(r, 64<<20))
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
}
