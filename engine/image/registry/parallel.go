package registry

import (
	"context"
	"io"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// chunkSize is what one request of a parallel fetch asks for, in bytes; a fetch
// holds at most one chunk per stream in memory.
const chunkSize = 8 << 20

// FetchBlobParallel is FetchBlob over several connections at once, for links
// where one connection does not fill the line. It holds up to streams (2 to 4) ×
// 8 MiB in memory. Small blobs and hosts without Range get one connection.
func (r *Remote) FetchBlobParallel(ctx context.Context, d ocispec.Descriptor, offset int64, streams int) (io.ReadCloser, error) {
	streams = min(streams, 4)
	if streams < 2 || d.Size-offset < 2*chunkSize {
		return r.FetchBlob(ctx, d, offset)
	}
	ctx, cancel := context.WithCancel(ctx)
	first, err := r.openBlob(ctx, d, offset, offset+chunkSize)
	if err != nil {
		cancel()
		return nil, err
	}
	if !first.ranged {
		first.end = d.Size // a whole body is coming already: read all of it
		return &cancelBlob{first, cancel}, nil
	}
	f := &parallelFetch{r: r, ctx: ctx, cancel: cancel, d: d, next: first.end}
	f.start(func() (*Blob, error) { return first, nil }, chunkSize)
	for range streams - 1 {
		f.startNext()
	}
	return f, nil
}

// cancelBlob frees the context that its blob was opened with.
type cancelBlob struct {
	*Blob
	cancel context.CancelFunc
}

func (b *cancelBlob) Close() error {
	defer b.cancel()
	return b.Blob.Close()
}

// parallelFetch delivers chunks in order while the next ones are on their way.
type parallelFetch struct {
	r      *Remote
	ctx    context.Context
	cancel context.CancelFunc
	d      ocispec.Descriptor
	next   int64 // where the next chunk starts

	wg    sync.WaitGroup
	queue []chan chunk // in order; each gets exactly one
	now   chunk        // being read
}

type chunk struct {
	data []byte
	err  error
}

func (f *parallelFetch) startNext() {
	from, to := f.next, min(f.next+chunkSize, f.d.Size)
	if from == to {
		return
	}
	f.next = to
	f.start(func() (*Blob, error) { return f.r.openBlob(f.ctx, f.d, from, to) }, to-from)
}

func (f *parallelFetch) start(open func() (*Blob, error), size int64) {
	ready := make(chan chunk, 1)
	f.queue = append(f.queue, ready)
	// owner: Close waits for f.wg
	f.wg.Go(func() {
		c := chunk{data: make([]byte, size)}
		b, err := open()
		if err == nil {
			defer func() { _ = b.Close() }()
			_, err = io.ReadFull(b, c.data)
		}
		c.err = err
		ready <- c
	})
}

// Read implements io.Reader.
func (f *parallelFetch) Read(p []byte) (int, error) {
	for len(f.now.data) == 0 && f.now.err == nil {
		if len(f.queue) == 0 {
			return 0, io.EOF
		}
		f.now = <-f.queue[0]
		f.queue = f.queue[1:]
		if f.now.err != nil {
			f.now.data = nil
		} else {
			f.startNext()
		}
	}
	if f.now.err != nil {
		return 0, f.now.err
	}
	n := copy(p, f.now.data)
	f.now.data = f.now.data[n:]
	return n, nil
}

// Close ends all transfers and waits for them.
func (f *parallelFetch) Close() error {
	f.cancel()
	f.wg.Wait()
	return nil
}
