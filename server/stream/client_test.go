package stream

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// result is what a client of a session got.
type result struct {
	stdout, stderr string
	status         string // the last word, as it came
}

// opts are what a client asks for.
type opts struct {
	protocol      string
	stdin         io.Reader
	tty           bool
	stderr        bool
	width, height int
}

// dialSPDY switches a connection to SPDY.
func dialSPDY(address, protocol string) (httpstream.Connection, error) {
	rt, err := spdy.NewRoundTripper(&tls.Config{InsecureSkipVerify: true})
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequest(http.MethodPost, address, nil)
	if err != nil {
		return nil, err
	}
	if protocol != "" {
		req.Header.Add(httpstream.HeaderProtocolVersion, protocol)
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	return rt.NewConnection(resp)
}

// runSPDY is a client of exec or attach over SPDY.
func runSPDY(address string, o opts) (result, error) {
	conn, err := dialSPDY(address, o.protocol)
	if err != nil {
		return result{}, err
	}
	defer conn.Close()
	open := func(kind string) (httpstream.Stream, error) {
		return conn.CreateStream(http.Header{"Streamtype": {kind}})
	}
	errStream, err := open("error")
	if err != nil {
		return result{}, err
	}
	var stdin, resize httpstream.Stream
	if o.stdin != nil {
		if stdin, err = open("stdin"); err != nil {
			return result{}, err
		}
	}
	stdout, err := open("stdout")
	if err != nil {
		return result{}, err
	}
	var out, errOut, last bytes.Buffer
	var wg sync.WaitGroup
	read := func(to *bytes.Buffer, from io.Reader) {
		wg.Add(1)
		go func() { defer wg.Done(); _, _ = io.Copy(to, from) }()
	}
	if o.stderr {
		stderr, err := open("stderr")
		if err != nil {
			return result{}, err
		}
		read(&errOut, stderr)
	}
	if o.tty && (o.protocol == "v4.channel.k8s.io" || o.protocol == "v3.channel.k8s.io") {
		if resize, err = open("resize"); err != nil {
			return result{}, err
		}
		if o.width != 0 {
			fmt.Fprintf(resize, `{"Width":%d,"Height":%d}`, o.width, o.height)
		}
	}
	read(&out, stdout)
	if stdin != nil {
		go func() {
			_, _ = io.Copy(stdin, o.stdin)
			_ = stdin.Close()
		}()
	}
	wg.Add(1)
	go func() { defer wg.Done(); _, _ = io.Copy(&last, errStream) }()
	wg.Wait()
	return result{out.String(), errOut.String(), last.String()}, nil
}

// dialWebsocket switches a connection to websockets.
func dialWebsocket(address, protocol string, control ...func(string, string, syscall.RawConn) error) (*websocket.Conn, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	u.Scheme = map[string]string{"http": "ws", "https": "wss"}[u.Scheme]
	c, err := websocket.NewConfig(u.String(), "http://localhost")
	if err != nil {
		return nil, err
	}
	if protocol != "" {
		c.Protocol = []string{protocol}
	}
	c.TlsConfig = &tls.Config{InsecureSkipVerify: true}
	if len(control) > 0 {
		c.Dialer = &net.Dialer{Control: control[0]}
	}
	return websocket.DialConfig(c)
}

// abort has the close of a socket reset its connection.
func abort(_, _ string, rc syscall.RawConn) error {
	var sysErr error
	err := rc.Control(func(fd uintptr) {
		sysErr = syscall.SetsockoptLinger(int(fd), syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1})
	})
	return errors.Join(err, sysErr)
}

// runWebsocket is a client of exec or attach over websockets.
func runWebsocket(address string, o opts) (result, error) {
	ws, err := dialWebsocket(address, o.protocol)
	if err != nil {
		return result{}, err
	}
	defer ws.Close()
	text := strings.Contains(o.protocol, "base64")
	send := func(channel byte, data []byte) error {
		if text {
			return websocket.Message.Send(ws, string('0'+channel)+encode(data))
		}
		return websocket.Message.Send(ws, append([]byte{channel}, data...))
	}
	if o.width != 0 {
		if err := send(4, fmt.Appendf(nil, `{"Width":%d,"Height":%d}`, o.width, o.height)); err != nil {
			return result{}, err
		}
	}
	if o.stdin != nil {
		go func() {
			buf := make([]byte, 1000)
			for {
				n, err := o.stdin.Read(buf)
				if n > 0 && send(0, buf[:n]) != nil {
					return
				}
				if err != nil {
					break
				}
			}
			if strings.HasPrefix(o.protocol, "v5") {
				_ = websocket.Message.Send(ws, []byte{255, 0})
			}
		}()
	}
	var r result
	for {
		var data []byte
		if err := websocket.Message.Receive(ws, &data); err != nil {
			if errors.Is(err, io.EOF) {
				return r, nil
			}
			return r, err
		}
		if len(data) == 0 {
			return r, errors.New("an empty message")
		}
		channel, rest := data[0], data[1:]
		if text {
			channel -= '0'
			rest = decode(rest)
		}
		switch channel {
		case 1:
			r.stdout += string(rest)
		case 2:
			r.stderr += string(rest)
		case 3:
			r.status += string(rest)
		}
	}
}

// exitCode reads a metav1.Status as kubectl does.
func exitCode(t *testing.T, text string) int {
	t.Helper()
	var s struct {
		Status, Reason string
		Details        struct {
			Causes []struct{ Reason, Message string }
		}
	}
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		t.Fatalf("status %q: %v", text, err)
	}
	if s.Status == "Success" {
		return 0
	}
	if s.Reason == "NonZeroExitCode" {
		for _, c := range s.Details.Causes {
			if c.Reason == "ExitCode" {
				var n int
				_, _ = fmt.Sscan(c.Message, &n)
				return n
			}
		}
	}
	return -1
}

// forwardStream opens one connection of a port-forward.
func forwardStream(conn httpstream.Connection, port, id int) (data, fault httpstream.Stream, err error) {
	h := http.Header{"Streamtype": {"error"}, "Port": {fmt.Sprint(port)}, "Requestid": {fmt.Sprint(id)}}
	if fault, err = conn.CreateStream(h); err != nil {
		return nil, nil, err
	}
	_ = fault.Close()
	h.Set("Streamtype", "data")
	data, err = conn.CreateStream(h)
	return data, fault, err
}

// dialTunnel speaks SPDY through a websocket.
func dialTunnel(address string) (httpstream.Connection, error) {
	ws, err := dialWebsocket(address, "SPDY/3.1+portforward.k8s.io")
	if err != nil {
		return nil, err
	}
	ws.PayloadType = websocket.BinaryFrame
	return spdy.NewClientConnection(net.Conn(ws))
}

// until waits for a condition.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 10 s", what)
		}
	}
}
