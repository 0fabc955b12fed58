package image

import (
	"errors"
	"io"
	"sync"
)

// aheadChunk and aheadDepth bound what one stage of a pull may be ahead of the
// next, in bytes and chunks.
const (
	aheadChunk = 256 << 10
	aheadDepth = 8
)

var aheadBuffers = sync.Pool{New: func() any { return new([aheadChunk]byte) }}

// ahead reads its source in a goroutine of its own, so that two stages of a pull
// run at once.
type ahead struct {
	full chan piece
	stop chan struct{}
	done chan struct{}
	cur  piece
	off  int
	once sync.Once
}

type piece struct {
	buf *[aheadChunk]byte
	n   int
	err error
}

// readAhead starts reading r. Close waits until r is no longer used: r must end
// when its context does.
func readAhead(r io.Reader) *ahead {
	a := &ahead{full: make(chan piece, aheadDepth), stop: make(chan struct{}), done: make(chan struct{})}
	// owner: Close waits for done.
	go a.run(r)
	return a
}

func (a *ahead) run(r io.Reader) {
	defer close(a.done)
	for {
		p := piece{buf: aheadBuffers.Get().(*[aheadChunk]byte)}
		p.n, p.err = io.ReadFull(r, p.buf[:])
		if errors.Is(p.err, io.ErrUnexpectedEOF) {
			p.err = io.EOF
		}
		select {
		case a.full <- p:
		case <-a.stop:
			return
		}
		if p.err != nil {
			return
		}
	}
}

// Read implements io.Reader.
func (a *ahead) Read(p []byte) (int, error) {
	for a.off == a.cur.n {
		if a.cur.err != nil {
			return 0, a.cur.err
		}
		if a.cur.buf != nil {
			aheadBuffers.Put(a.cur.buf)
		}
		select {
		case a.cur = <-a.full:
			a.off = 0
		case <-a.stop:
			return 0, io.ErrClosedPipe
		}
	}
	n := copy(p, a.cur.buf[a.off:a.cur.n])
	a.off += n
	return n, nil
}

// end makes Read and the goroutine give up.
func (a *ahead) end() { a.once.Do(func() { close(a.stop) }) }

// Close ends the reading and waits for the goroutine.
func (a *ahead) Close() error {
	a.end()
	<-a.done
	return nil
}
