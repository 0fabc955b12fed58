package compat

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"

	"golang.org/x/net/websocket"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// client is one end of an exec or attach, as kubectl has it: over SPDY (version 4), or
// over a websocket (version 5).
type client struct {
	stdin    io.WriteCloser // nil if it was not asked for
	resize   func(width, height int) error
	leave    func()
	done     chan struct{} // closed when the other side has ended all streams
	mu       sync.Mutex
	out, err bytes.Buffer
	last     bytes.Buffer
}

type asked struct{ stdin, stderr, tty bool }

func connect(address, transport string, a asked) (*client, error) {
	if transport == "spdy" {
		return connectSPDY(address, a)
	}
	return connectWebsocket(address, a)
}

func (c *client) text(b *bytes.Buffer) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return b.String()
}

// code is the exit code that the last message tells; -1 if it tells another failure.
func (c *client) code() (int, error) {
	var s struct {
		Status, Reason, Message string
		Details                 struct {
			Causes []struct{ Reason, Message string }
		}
	}
	text := c.text(&c.last)
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return -1, fmt.Errorf("status %q: %w", text, err)
	}
	switch {
	case s.Status == "Success":
		return 0, nil
	case s.Reason == "NonZeroExitCode" && len(s.Details.Causes) == 1 && s.Details.Causes[0].Reason == "ExitCode":
		var n int
		_, err := fmt.Sscan(s.Details.Causes[0].Message, &n)
		return n, err
	}
	return -1, errors.New(s.Message)
}

// copy collects a stream.
func (c *client) copy(to *bytes.Buffer, from io.Reader, wg *sync.WaitGroup) {
	wg.Add(1)
	go func() {
		defer wg.Done()
		buf := make([]byte, 32<<10)
		for {
			n, err := from.Read(buf)
			c.mu.Lock()
			to.Write(buf[:n])
			c.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
}

func dialSPDY(address, protocol string) (httpstream.Connection, error) {
	rt, err := spdy.NewRoundTripper(nil)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequest(http.MethodPost, address, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Add(httpstream.HeaderProtocolVersion, protocol)
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	return rt.NewConnection(resp)
}

func connectSPDY(address string, a asked) (*client, error) {
	conn, err := dialSPDY(address, "v4.channel.k8s.io")
	if err != nil {
		return nil, err
	}
	c := &client{done: make(chan struct{}), leave: func() { _ = conn.Close() }}
	var wg sync.WaitGroup
	for _, s := range []struct {
		kind   string
		wanted bool
		to     *bytes.Buffer
	}{{"error", true, &c.last}, {"stdin", a.stdin, nil}, {"stdout", true, &c.out}, {"stderr", a.stderr, &c.err}, {"resize", a.tty, nil}} {
		if !s.wanted {
			continue
		}
		st, err := conn.CreateStream(http.Header{"Streamtype": {s.kind}})
		if err != nil {
			_ = conn.Close()
			return nil, err
		}
		switch s.kind {
		case "stdin":
			c.stdin = st
		case "resize":
			c.resize = func(w, h int) error { _, err := fmt.Fprintf(st, `{"Width":%d,"Height":%d}`, w, h); return err }
		default:
			c.copy(s.to, st, &wg)
		}
	}
	go func() {
		wg.Wait()
		_ = conn.Close()
		close(c.done)
	}()
	return c, nil
}

func connectWebsocket(address string, a asked) (*client, error) {
	config, err := websocket.NewConfig(strings.Replace(address, "http://", "ws://", 1), "http://localhost")
	if err != nil {
		return nil, err
	}
	config.Protocol = []string{"v5.channel.k8s.io"}
	ws, err := websocket.DialConfig(config)
	if err != nil {
		return nil, err
	}
	c := &client{done: make(chan struct{}), leave: func() { _ = ws.Close() }}
	c.resize = func(w, h int) error {
		return websocket.Message.Send(ws, fmt.Appendf([]byte{4}, `{"Width":%d,"Height":%d}`, w, h))
	}
	if a.stdin {
		c.stdin = channel{ws}
	}
	go func() {
		defer close(c.done)
		defer ws.Close()
		to := map[byte]*bytes.Buffer{1: &c.out, 2: &c.err, 3: &c.last}
		for {
			var data []byte
			if websocket.Message.Receive(ws, &data) != nil || len(data) == 0 || to[data[0]] == nil {
				return
			}
			c.mu.Lock()
			to[data[0]].Write(data[1:])
			c.mu.Unlock()
		}
	}()
	return c, nil
}

// channel is stdin of a websocket.
type channel struct{ ws *websocket.Conn }

func (c channel) Write(p []byte) (int, error) {
	return len(p), websocket.Message.Send(c.ws, append([]byte{0}, p...))
}

func (c channel) Close() error { return websocket.Message.Send(c.ws, []byte{255, 0}) }

// forwarded is one connection to a port of a pod.
func forwarded(conn httpstream.Connection, port, id int) (data, fault httpstream.Stream, err error) {
	h := http.Header{"Streamtype": {"error"}, "Port": {fmt.Sprint(port)}, "Requestid": {fmt.Sprint(id)}}
	if fault, err = conn.CreateStream(h); err != nil {
		return nil, nil, err
	}
	_ = fault.Close()
	h.Set("Streamtype", "data")
	data, err = conn.CreateStream(h)
	return data, fault, err
}
