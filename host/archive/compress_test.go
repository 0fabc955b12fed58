package archive

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/berthd/berth/base/errs"
)

const (
	ociTar  = "application/vnd.oci.image.layer.v1.tar"
	ociGzip = ociTar + "+gzip"
	ociZstd = ociTar + "+zstd"
	docker  = "application/vnd.docker.image.rootfs.diff.tar"
)

func compressed(t testing.TB, mediaType string, data []byte) []byte {
	var buf bytes.Buffer
	w, err := Compress(&buf, mediaType)
	must(t, err)
	_, err = w.Write(data)
	must(t, err)
	must(t, w.Close())
	return buf.Bytes()
}

func TestDecompress(t *testing.T) {
	plain := layer(t, file("f", strings.Repeat("some text ", 10000)))
	gz, zs := compressed(t, ociGzip, plain), compressed(t, ociZstd, plain)
	if !bytes.Equal(gz, compressed(t, ociGzip, plain)) {
		t.Error("gzip of equal input differs")
	}
	skippable := append([]byte{0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4}, zs...)
	cases := []struct {
		name, mediaType string
		in, want        []byte // want nil: InvalidArgument or any read error
	}{
		{"gzip", ociGzip, gz, plain},
		{"docker gzip", docker + ".gzip", gz, plain},
		{"zstd", ociZstd, zs, plain},
		{"plain", ociTar, plain, plain},
		{"empty plain", ociTar, nil, []byte{}},
		{"docker's plain type on gzip", docker, gz, plain},
		{"no type, zstd", "", zs, plain},
		{"no type, plain", "", plain, plain},
		{"parameters", ociGzip + "; x=y", gz, plain},
		{"several members", ociGzip, append(bytes.Clone(gz), gz...), append(bytes.Clone(plain), plain...)},
		{"several frames", ociZstd, append(bytes.Clone(zs), zs...), append(bytes.Clone(plain), plain...)},
		{"skippable frame first", ociZstd, skippable, plain},
		{"Z04 a million empty members", ociGzip, append(bytes.Repeat(gzipped1(t, nil), 1000000), gz...), plain},
		{"Z02 a million tiny frames", ociZstd, append(bytes.Repeat(compressed(t, ociZstd, nil), 1000000), zs...), plain},
		{"Z08 gzip type, zstd bytes", ociGzip, zs, plain},
		{"Z08 gzip type, plain bytes", ociGzip, plain, nil},
		{"Z08 gzip type, html", ociGzip, []byte("<html>"), nil},
		{"Z08 gzip type, xz", ociGzip, []byte("\xfd7zXZ\x00\x00"), nil},
		{"Z08 plain type, gzip bytes", ociTar, gz, nil},
		{"Z08 gzip type, nothing", ociGzip, nil, nil},
		{"Z09 garbage after gzip", ociGzip, append(bytes.Clone(gz), "garbage"...), nil},
		{"Z09 garbage after zstd", ociZstd, append(bytes.Clone(zs), "garbage"...), nil},
		{"Z02 zstd window of 2 GiB", ociZstd, []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0xa8, 1, 0, 0}, nil},
	}
	for cut := range 63 { // Z05
		n := (cut + 1) * len(gz) / 64
		cases = append(cases, struct {
			name, mediaType string
			in, want        []byte
		}{"Z05 gzip cut", ociGzip, gz[:n], nil})
	}
	for _, c := range cases {
		r, err := Decompress(bytes.NewReader(c.in), c.mediaType)
		var got []byte
		if err == nil {
			got, err = io.ReadAll(r)
			must(t, r.Close())
		} else if !errors.Is(err, errs.InvalidArgument) {
			t.Errorf("%s: %v is not of kind InvalidArgument", c.name, err)
		}
		if (err == nil) != (c.want != nil) {
			t.Errorf("%s: error %v", c.name, err)
		}
		if c.want != nil && !bytes.Equal(got, c.want) {
			t.Errorf("%s: %d bytes, want %d", c.name, len(got), len(c.want))
		}
	}
	if _, err := Compress(io.Discard, "text/html"); err == nil {
		t.Error("html can be written")
	}
}

// TestDecompressMemory: Z01 and the largest window that is allowed.
func TestDecompressMemory(t *testing.T) {
	var bomb bytes.Buffer
	w, err := Compress(&bomb, ociGzip)
	must(t, err)
	_, err = io.CopyN(w, fill(0), 1<<30)
	must(t, err)
	must(t, w.Close())
	var wide bytes.Buffer
	z, err := zstd.NewWriter(&wide, zstd.WithWindowSize(128<<20), zstd.WithEncoderConcurrency(1), zstd.WithSingleSegment(false))
	must(t, err)
	_, err = io.CopyN(z, fill('w'), 300<<20)
	must(t, err)
	must(t, z.Close())
	for _, c := range []struct {
		name string
		in   []byte
		most uint64
	}{{"gzip bomb", bomb.Bytes(), 8 << 20}, {"zstd with the largest window", wide.Bytes(), 400 << 20}} {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		r, err := Decompress(bytes.NewReader(c.in), "")
		must(t, err)
		n, err := io.Copy(io.Discard, r)
		must(t, err)
		must(t, r.Close())
		runtime.ReadMemStats(&after)
		t.Logf("%s: %d MiB from %d KiB, allocated %d MiB", c.name, n>>20, len(c.in)>>10, (after.TotalAlloc-before.TotalAlloc)>>20)
		if got := after.TotalAlloc - before.TotalAlloc; got > c.most {
			t.Errorf("%s: allocated %d MiB", c.name, got>>20)
		}
	}
}
