package archive

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/berthd/berth/base/errs"
)

// The reader parses and copies ahead of the writer: at most depth chunks, so
// depth*chunkSize bytes (2 MiB), plus the chunks in the two hands.
const (
	chunkSize = 64 << 10
	depth     = 32
	// maxTail bounds what may follow the end of the archive. Tools pad to their
	// record size, at most a few MiB.
	maxTail = 64 << 20
)

// item is an entry, or more contents of the entry before (hdr nil).
type item struct {
	hdr  *tar.Header
	data []byte // owned by the receiver, who gives it back with free
	more bool   // contents follow in further items
}

// stream is the goroutine that reads the tar stream.
type stream struct {
	items chan item
	done  chan struct{}
	err   error // valid after done
	pool  sync.Pool
}

// startStream begins reading; the caller must call wait.
func startStream(ctx context.Context, r io.Reader, o ApplyOptions) *stream {
	s := &stream{items: make(chan item, depth), done: make(chan struct{})}
	s.pool.New = func() any { b := make([]byte, chunkSize); return &b }
	// owner: Apply, in wait
	go func() {
		defer close(s.done)
		defer close(s.items)
		s.err = s.read(ctx, r, o)
	}()
	return s
}

// next returns the next entry; ok is false at the end of what could be read.
func (s *stream) next(ctx context.Context) (it item, ok bool, err error) {
	select {
	case it, ok = <-s.items:
		return it, ok, nil
	case <-ctx.Done():
		return it, false, context.Cause(ctx)
	}
}

// errEnded says that the stream ended inside an entry; why, its reader knows.
var errEnded = errors.New("the layer ends here")

// wait waits for the reader to end and returns what went wrong first: the error of
// the writer, or the reader's.
func (s *stream) wait(writer error) error {
	for range s.items {
	}
	<-s.done
	if writer != nil && !errors.Is(writer, errEnded) {
		return writer
	}
	return s.err
}

func (s *stream) free(data []byte) {
	if cap(data) == chunkSize {
		data = data[:chunkSize]
		s.pool.Put(&data)
	}
}

func (s *stream) read(ctx context.Context, r io.Reader, o ApplyOptions) error {
	m := &metered{r: r}
	tr := tar.NewReader(m)
	var entries, size int64
	for {
		m.start(o.MaxHeaderBytes)
		hdr, err := tr.Next()
		m.stop()
		if err == io.EOF {
			return m.drain(ctx)
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) { // names are made harmless, not refused
			return m.reason(fmt.Errorf("read tar entry %d: %w", entries+1, err))
		}
		if entries++; entries > o.MaxEntries {
			return errs.New(errs.ResourceExhausted, "the layer has more than %d entries", o.MaxEntries)
		}
		if headerOnly(hdr.Typeflag) {
			hdr.Size = 0 // whatever it says, the reader takes no contents
		}
		if hdr.Size > o.MaxBytes-size {
			return errs.New(errs.ResourceExhausted, "the layer's files have more than %d bytes", o.MaxBytes)
		}
		size += hdr.Size
		if hdr.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if err := xattrBudget(hdr, o.MaxXattrBytes); err != nil {
			return err
		}
		if err := s.contents(ctx, tr, hdr); err != nil {
			return m.reason(err)
		}
	}
}

// contents sends the header and what the entry holds.
func (s *stream) contents(ctx context.Context, tr *tar.Reader, hdr *tar.Header) error {
	it := item{hdr: hdr}
	left := hdr.Size
	for {
		if left > 0 {
			buf := *s.pool.Get().(*[]byte)
			it.data = buf[:min(left, chunkSize)]
			if _, err := io.ReadFull(tr, it.data); err != nil {
				if err == io.EOF {
					err = io.ErrUnexpectedEOF
				}
				return fmt.Errorf("read contents of %q: %w", clip(hdr.Name), err)
			}
			left -= int64(len(it.data))
		}
		it.more = left > 0
		select {
		case s.items <- it:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if !it.more {
			return nil
		}
		it = item{}
	}
}

func headerOnly(typeflag byte) bool {
	switch typeflag {
	case tar.TypeLink, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeDir, tar.TypeFifo:
		return true
	}
	return false
}

func xattrBudget(hdr *tar.Header, most int64) error {
	var n int64
	for k, v := range hdr.PAXRecords {
		if strings.HasPrefix(k, paxXattr) {
			n += int64(len(k) - len(paxXattr) + len(v))
		}
	}
	if n > most {
		return errs.New(errs.ResourceExhausted, "extended attributes of %q: %d bytes, at most %d are allowed", clip(hdr.Name), n, most)
	}
	return nil
}

// metered counts what the tar reader takes for headers.
type metered struct {
	r     io.Reader
	left  int64
	count bool
	most  int64

	failed error // of r
}

func (m *metered) start(most int64) { m.count, m.left, m.most = true, most, most }
func (m *metered) stop()            { m.count = false }

func (m *metered) Read(p []byte) (int, error) {
	if m.count {
		if m.left <= 0 {
			return 0, errs.New(errs.ResourceExhausted, "the headers of one entry have more than %d bytes", m.most)
		}
		p = p[:min(int64(len(p)), m.left)]
	}
	n, err := m.r.Read(p)
	if m.count {
		m.left -= int64(n)
	}
	if err != nil && err != io.EOF {
		m.failed = err
	}
	return n, err
}

// reason tells a malformed stream from one that could not be read.
func (m *metered) reason(err error) error {
	malformed := errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong) || errors.Is(err, io.ErrUnexpectedEOF)
	if malformed && m.failed == nil {
		return errs.New(errs.InvalidArgument, "%w", err)
	}
	return err
}

// drain reads what follows the end marks.
func (m *metered) drain(ctx context.Context) error {
	buf := make([]byte, chunkSize)
	for left := maxTail; left > 0; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := m.r.Read(buf)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read to the end of the layer: %w", err)
		}
		left -= n
	}
	return errs.New(errs.ResourceExhausted, "more than %d bytes follow the end of the archive", maxTail)
}

// clip keeps hostile names short in messages.
func clip(s string) string {
	const most = 128
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
