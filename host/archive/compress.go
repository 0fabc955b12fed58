package archive

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/berthd/berth/base/errs"
)

// maxWindow is the most memory a zstd frame may ask for: what the zstd program
// itself accepts (its --long=27, and its highest levels).
const maxWindow = 128 << 20

type compression uint8

const (
	unsaid compression = iota // the media type says nothing
	plain
	gzipped
	zstded
)

func (c compression) String() string {
	return [...]string{"unknown", "no compression", "gzip", "zstd"}[c]
}

// compressionOf reads a media type: image-spec's suffixes and docker's. Docker's
// plain layer type says nothing: old pushes have it on gzip too.
func compressionOf(mediaType string) compression {
	t, _, _ := strings.Cut(mediaType, ";")
	switch t = strings.TrimSpace(t); {
	case strings.HasSuffix(t, "+gzip"), strings.HasSuffix(t, ".gzip"):
		return gzipped
	case strings.HasSuffix(t, "+zstd"), strings.HasSuffix(t, ".zstd"):
		return zstded
	case strings.HasSuffix(t, ".tar") && strings.HasPrefix(t, "application/vnd.oci."):
		return plain
	}
	return unsaid
}

// sniff tells a compression by its first bytes (RFC 1952; RFC 8878 3.1.1, 3.1.2).
func sniff(b []byte) compression {
	switch {
	case bytes.HasPrefix(b, []byte{0x1f, 0x8b, 8}):
		return gzipped
	case bytes.HasPrefix(b, []byte{0x28, 0xb5, 0x2f, 0xfd}),
		len(b) >= 4 && b[0]&0xf0 == 0x50 && b[1] == 0x2a && b[2] == 0x4d && b[3] == 0x18:
		return zstded
	}
	return plain
}

// Decompress opens a layer for reading as plain tar. The first bytes decide
// between gzip and zstd, whichever of them the media type says, as with the peers;
// a type that says compressed for bytes that are not, or the other way round, is
// an error of kind InvalidArgument. Memory is bounded: 1 MiB of output ahead, and
// for zstd the frame's window, at most 128 MiB. A compressed layer is decoded in a
// goroutine that the first Read starts and Close waits for: by then a Read of r that
// hangs must have been made to return. Close does not close r.
func Decompress(r io.Reader, mediaType string) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 128<<10)
	head, err := br.Peek(4)
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("read the start of the layer: %w", err)
	}
	says, is := compressionOf(mediaType), sniff(head)
	if says != unsaid && (says == plain) != (is == plain) {
		return nil, errs.New(errs.InvalidArgument, "layer of type %q: the type says %s, the bytes % x are %s", mediaType, says, head, is)
	}
	switch is {
	case gzipped:
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, errs.New(errs.InvalidArgument, "gzip layer: %w", err)
		}
		return newAhead(decoder{z, "gzip"}, func() { _ = z.Close() }), nil // it repeats the error of Read
	case zstded:
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(1<<62))
		if err != nil {
			return nil, fmt.Errorf("zstd layer: %w", err)
		}
		return newAhead(decoder{z, "zstd"}, z.Close), nil
	}
	return io.NopCloser(br), nil
}

// decoder names the format in errors.
type decoder struct {
	r    io.Reader
	name string
}

func (d decoder) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	switch {
	case err == nil || errors.Is(err, io.EOF):
	case malformed(err):
		err = errs.New(errs.InvalidArgument, "%s layer: %w", d.name, err)
	default: // what came from the reader below
		err = fmt.Errorf("%s layer: %w", d.name, err)
	}
	return n, err
}

// malformed tells an error in the compressed bytes from one in getting them.
func malformed(err error) bool {
	var flateErr flate.CorruptInputError
	for _, bad := range []error{io.ErrUnexpectedEOF, gzip.ErrHeader, gzip.ErrChecksum, zstd.ErrMagicMismatch, zstd.ErrCRCMismatch, zstd.ErrUnexpectedBlockSize} {
		if errors.Is(err, bad) {
			return true
		}
	}
	return errors.As(err, &flateErr)
}

// Compress wraps w to write a layer of a media type; Close ends the layer and
// does not close w. Equal input gives equal output.
func Compress(w io.Writer, mediaType string) (io.WriteCloser, error) {
	switch compressionOf(mediaType) {
	case gzipped:
		return gzip.NewWriter(w), nil
	case zstded:
		return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
	}
	if strings.HasSuffix(mediaType, ".tar") {
		return nopWriteCloser{w}, nil
	}
	return nil, errs.New(errs.InvalidArgument, "layer type %q: not a type that can be written", mediaType)
}

type nopWriteCloser struct{ io.Writer }

func (nopWriteCloser) Close() error { return nil }
