package stdio

import (
	"bufio"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/berthd/berth/base/attach"
	"github.com/berthd/berth/host/sock"
)

// What attach clients may use up.
const (
	maxClients = 64
	maxQueue   = 1 << 20     // bytes a client may lag behind before it is cut off
	lastWords  = time.Second // a client's time to read what is left when all is over
)

// hub gives the output of a process to all who are attached, and takes its stdin
// from them. The frames are those of base/attach.
type hub struct {
	s          *Stdio
	l          *sock.Listener
	takesStdin bool
	once       bool

	mu      sync.Mutex
	clients map[*client]struct{}
	ended   bool
	closed  bool
	status  uint32
	wg      sync.WaitGroup
	stdin   sync.Mutex // one frame at a time
}

// client is one connection. Its queue is frames ready to be sent, shared with the
// queues of the others.
type client struct {
	hub    *hub
	conn   *os.File
	wake   chan struct{}
	queue  [][]byte // guarded by hub.mu
	size   int
	last   bool // nothing comes after the queue
	writes bool // has sent stdin; only its reader knows
}

func openHub(s *Stdio) (*hub, error) {
	path := filepath.Join(s.config.Bundle, s.config.AttachAt)
	_ = os.Remove(path)
	l, err := sock.Listen(path)
	if err != nil {
		return nil, fmt.Errorf("make attach socket: %w", err)
	}
	h := &hub{s: s, l: l, clients: map[*client]struct{}{}}
	if in, err := parsePlace(s.config.Stdin); err == nil && in.scheme == "attach" {
		q, _ := url.ParseQuery(in.query)
		h.takesStdin, h.once = true, q.Get("once") == "1"
	}
	h.wg.Add(1)
	// owner: close waits for it
	go h.serve()
	return h, nil
}

func (h *hub) serve() {
	defer h.wg.Done()
	for {
		conn, err := h.l.Accept()
		if err != nil {
			return
		}
		h.add(conn)
	}
}

func (h *hub) add(conn *os.File) {
	flags := byte(0)
	if h.s.config.Terminal {
		flags |= attach.FlagTerminal
	}
	if h.takesStdin {
		flags |= attach.FlagStdin
	}
	if h.once {
		flags |= attach.FlagStdinOnce
	}
	c := &client{hub: h, conn: conn, wake: make(chan struct{}, 1)}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || len(h.clients) >= maxClients {
		_ = conn.Close()
		return
	}
	h.clients[c] = struct{}{}
	c.push(attach.Append(nil, attach.Hello, []byte{attach.Version, flags}))
	if h.ended {
		c.end(h.status)
	}
	h.wg.Add(2)
	// owner: close waits for it
	go c.send()
	// owner: close waits for it
	go c.receive()
}

// push adds a frame; the hub is locked. A client that lags too far behind is cut
// off: the container is never made to wait.
func (c *client) push(frame []byte) {
	if c.last {
		return
	}
	if c.size+len(frame) > maxQueue {
		c.last, c.queue = true, nil
		_ = c.conn.Close()
		return
	}
	c.queue = append(c.queue, frame)
	c.size += len(frame)
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *client) end(status uint32) {
	c.push(attach.Append(nil, attach.Exit, attach.AppendStatus(nil, status)))
	c.last = true
}

// output gives bytes to every client.
func (h *hub) output(stderr bool, p []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.clients) == 0 {
		return
	}
	kind := attach.Stdout
	if stderr {
		kind = attach.Stderr
	}
	frame := attach.Append(nil, kind, p) // a copier's buffer is shorter than MaxData
	for c := range h.clients {
		c.push(frame)
	}
}

// end tells every client, now and later, how the process ended.
func (h *hub) end(status uint32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ended, h.status = true, status
	for c := range h.clients {
		c.end(status)
	}
}

// send writes the queue until it has ended.
func (c *client) send() {
	defer c.hub.wg.Done()
	defer func() { _ = c.conn.Close() }()
	for range c.wake {
		for {
			c.hub.mu.Lock()
			queue, last := c.queue, c.last
			c.queue = nil
			c.hub.mu.Unlock()
			if len(queue) == 0 {
				if last {
					return
				}
				break
			}
			for _, frame := range queue {
				if _, err := c.conn.Write(frame); err != nil {
					return
				}
				c.hub.mu.Lock()
				c.size -= len(frame)
				c.hub.mu.Unlock()
			}
		}
	}
}

// receive takes the client's frames until it leaves.
func (c *client) receive() {
	defer c.hub.wg.Done()
	r := bufio.NewReaderSize(c.conn, 512)
	var buf []byte
	for {
		f, b, err := attach.Read(r, buf)
		if err != nil || !c.take(f) {
			break
		}
		if buf = b; cap(buf) > 4096 {
			buf = nil
		}
	}
	c.leave()
}

// take obeys one frame. It returns false if the client is of no more use.
func (c *client) take(f attach.Frame) bool {
	switch f.Kind {
	case attach.Stdin:
		c.writes = true
		if c.hub.takesStdin {
			c.hub.stdin.Lock()
			c.hub.s.writeStdin(f.Data)
			c.hub.stdin.Unlock()
		}
	case attach.CloseStdin:
		c.stdinEnds()
	case attach.Resize:
		if columns, rows, ok := attach.Size(f.Data); ok {
			_ = c.hub.s.Resize(columns, rows)
		}
	case attach.Reopen:
		c.reopen()
	default:
		return false
	}
	return true
}

func (c *client) reopen() {
	text := ""
	if err := c.hub.s.Reopen(); err != nil {
		text = err.Error()
	}
	c.hub.mu.Lock()
	defer c.hub.mu.Unlock()
	c.push(attach.Append(nil, attach.Reopened, []byte(text[:min(len(text), 4096)])))
}

// stdinEnds ends the process's stdin if only one client may write and this was it.
// A terminal stays open, as the kubelet expects.
func (c *client) stdinEnds() {
	if c.hub.once && c.writes && !c.hub.s.config.Terminal {
		c.hub.s.endStdin()
	}
}

func (c *client) leave() {
	c.stdinEnds()
	_ = c.conn.Close()
	h := c.hub
	h.mu.Lock()
	delete(h.clients, c)
	c.last, c.queue = true, nil
	h.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// close ends all clients and waits for their goroutines. Those that were told of
// the exit get a little time to read it.
func (h *hub) close() {
	h.l.Close()
	h.mu.Lock()
	h.closed = true
	for c := range h.clients {
		if h.ended {
			_ = c.conn.SetWriteDeadline(time.Now().Add(lastWords))
		} else {
			_ = c.conn.Close()
		}
	}
	h.mu.Unlock()
	h.wg.Wait()
	_ = os.Remove(filepath.Join(h.s.config.Bundle, h.s.config.AttachAt))
}
