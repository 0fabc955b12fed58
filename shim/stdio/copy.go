package stdio

import (
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// buffers serve all copiers. A copier takes one only when there is something to
// read, so that an idle container holds none, and a collection empties the pool.
var buffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// sink takes the output of a process.
type sink interface {
	// Write takes a piece of output. It may block where the reader of a FIFO is
	// slow; it has no way to fail.
	Write(p []byte)
	// Close says that the stream has ended.
	Close()
}

// copier moves one stream of a process to its sink.
type copier struct {
	src  *os.File
	dst  sink
	mu   sync.Mutex
	turn *sync.Cond
	idle bool // waits for src
	done bool
}

func newCopier(src *os.File, dst sink) *copier {
	c := &copier{src: src, dst: dst}
	c.turn = sync.NewCond(&c.mu)
	return c
}

// run copies until src ends or is closed.
func (c *copier) run() {
	defer c.finish()
	rc, err := c.src.SyscallConn()
	if err != nil {
		return
	}
	for {
		buf, n := c.read(rc)
		if n <= 0 {
			return
		}
		c.dst.Write(buf[:n])
		buffers.Put(buf)
	}
}

// read waits for output. It returns 0 at the end: a terminal whose processes are
// gone ends with an error (EIO).
func (c *copier) read(rc syscall.RawConn) (buf *[32 << 10]byte, n int) {
	var sysErr error
	err := rc.Read(func(fd uintptr) bool {
		buf = buffers.Get().(*[32 << 10]byte)
		for {
			n, sysErr = unix.Read(int(fd), buf[:])
			if sysErr != unix.EINTR {
				break
			}
		}
		if sysErr != unix.EAGAIN {
			c.set(false)
			return true
		}
		buffers.Put(buf)
		c.set(true)
		return false
	})
	if err != nil || sysErr != nil || n <= 0 {
		return nil, 0
	}
	return buf, n
}

func (c *copier) set(idle bool) {
	c.mu.Lock()
	c.idle = idle
	c.turn.Broadcast()
	c.mu.Unlock()
}

func (c *copier) finish() {
	c.dst.Close()
	c.mu.Lock()
	c.done = true
	c.turn.Broadcast()
	c.mu.Unlock()
}

// drain waits until all that lies in src now has reached the sink, or until limit
// has passed. Others may still hold src's other end and write more: they are not
// waited for.
func (c *copier) drain(limit time.Duration) {
	timer := time.AfterFunc(limit, func() {
		c.mu.Lock()
		c.done = true
		c.turn.Broadcast()
		c.mu.Unlock()
	})
	defer timer.Stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.done && (!c.idle || pending(c.src) > 0) {
		c.turn.Wait()
	}
}

// wait returns when run has ended.
func (c *copier) wait() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.done {
		c.turn.Wait()
	}
}

// pending is how many bytes can be read.
func pending(f *os.File) int {
	n := 0
	if rc, err := f.SyscallConn(); err == nil {
		_ = rc.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	}
	return n
}

// fileSink writes to a FIFO, a file or a pipe. Once that fails, output is dropped
// piece by piece; the process never notices.
type fileSink struct {
	shared *sharedFile
}

func (s fileSink) Write(p []byte) { _, _ = s.shared.file.Write(p) }
func (s fileSink) Close()         { s.shared.close() }

// sharedFile closes its file when all its users have.
type sharedFile struct {
	file  *os.File
	mu    sync.Mutex
	users int
}

func (s *sharedFile) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users--; s.users == 0 {
		_ = s.file.Close()
	}
}

// pipe makes a pipe of which one end is ours, not blocking, and the other the
// container's, owned by the user that the container runs as, so that it can open
// /dev/stdout and the like.
func pipe(oursReads bool, uid, gid int) (ours, theirs *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("make pipe: %w", err)
	}
	if !oursReads {
		fds[0], fds[1] = fds[1], fds[0]
	}
	err = unix.Fchown(fds[1], uid, gid)
	if err == nil {
		err = unix.SetNonblock(fds[0], true)
	}
	if err != nil {
		_ = unix.Close(fds[0])
		_ = unix.Close(fds[1])
		return nil, nil, fmt.Errorf("make pipe: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe"), nil
}
