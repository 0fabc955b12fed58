package task

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// pumpBuffers serve all pumps, each as long as it runs.
var pumpBuffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// pump moves one output of a process to whoever listens.
type pump struct {
	src  *os.File // not blocking
	dst  io.Writer
	done chan struct{}
}

// run copies until the end of src, or until finish. A Write that fails is told.
func (p *pump) run(fail func(error)) {
	defer close(p.done)
	buf := pumpBuffers.Get().(*[32 << 10]byte)
	defer pumpBuffers.Put(buf)
	for {
		n, err := p.src.Read(buf[:])
		if n > 0 {
			if _, err := p.dst.Write(buf[:n]); err != nil {
				fail(err)
				return
			}
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			p.rest(buf[:])
		}
		if err != nil {
			return
		}
	}
}

// finish makes run end as soon as it has copied what lies in src now.
func (p *pump) finish() { _ = p.src.SetReadDeadline(time.Now()) }

// rest copies what can be read without waiting, but no more than there is now: who
// still holds the other end may write for ever.
func (p *pump) rest(buf []byte) {
	rc, err := p.src.SyscallConn()
	if err != nil {
		return
	}
	_ = rc.Control(func(fd uintptr) {
		left, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ)
		for err == nil && left > 0 {
			var n int
			n, err = unix.Read(int(fd), buf[:min(len(buf), left)])
			if err != nil || n <= 0 {
				return
			}
			left -= n
			_, err = p.dst.Write(buf[:n])
		}
	})
}
