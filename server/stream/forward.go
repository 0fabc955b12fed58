package stream

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"

	"golang.org/x/net/websocket"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// forward is one port-forward: any number of connections to the ports of a pod.
type forward struct {
	pod   string
	ports []int32 // which websockets need beforehand; SPDY's streams each name theirs
}

func (f *forward) serve(s *Server, w http.ResponseWriter, r *http.Request) {
	to := forwarder{ctx: r.Context(), s: s, pod: f.pod}
	if wsstream.IsWebSocketRequestWithTunnelingProtocol(r) {
		f.serveTunnel(s, w, r, to)
		return
	}
	portforward.ServePortForward(w, r, to, f.pod, "", &portforward.V4Options{Ports: f.ports}, s.cfg.IdleTimeout, createTime, portforward.SupportedProtocols)
}

// forwarder is a session as the library calls it. Its context is the session's: the
// library has none.
type forwarder struct {
	ctx context.Context
	s   *Server
	pod string
}

// PortForward serves one connection.
func (f forwarder) PortForward(_ context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	return f.s.cfg.Pods.PortForward(f.ctx, f.s.cfg.Namespace, f.pod, port, stream)
}

// serveTunnel speaks SPDY through the binary messages of a websocket.
func (f *forward) serveTunnel(s *Server, w http.ResponseWriter, r *http.Request, to forwarder) {
	shake := func(c *websocket.Config, _ *http.Request) error {
		for _, p := range c.Protocol {
			if p == portforward.WebsocketsSPDYTunnelingPortForwardV1 {
				c.Protocol = []string{p}
				return nil
			}
		}
		return websocket.ErrBadWebSocketProtocol
	}
	websocket.Server{Handshake: shake, Handler: func(ws *websocket.Conn) {
		ws.PayloadType = websocket.BinaryFrame
		inner := r.Clone(r.Context())
		inner.Header = http.Header{
			"Connection": {"Upgrade"}, "Upgrade": {"SPDY/3.1"},
			"X-Stream-Protocol-Version": {strings.TrimPrefix(portforward.WebsocketsSPDYTunnelingPortForwardV1, portforward.WebsocketsSPDYTunnelingPrefix)},
		}
		portforward.ServePortForward(&tunnel{conn: ws, header: http.Header{}}, inner, to, f.pod, "", &portforward.V4Options{}, s.cfg.IdleTimeout, createTime, portforward.SupportedProtocols)
	}}.ServeHTTP(w, r)
}

// tunnel is the response whose connection is the inside of a websocket. The upgrade
// has been answered outside, so its header goes nowhere.
type tunnel struct {
	conn   net.Conn
	header http.Header
}

// Header collects what is not sent.
func (t *tunnel) Header() http.Header { return t.header }

// Write drops what would be an answer to the inner request.
func (t *tunnel) Write(p []byte) (int, error) { return len(p), nil }

// WriteHeader sends nothing.
func (t *tunnel) WriteHeader(int) {}

// Hijack gives the tunnel away.
func (t *tunnel) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return t.conn, bufio.NewReadWriter(bufio.NewReader(t.conn), bufio.NewWriter(t.conn)), nil
}
