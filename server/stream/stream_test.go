package stream

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/engine/task"
)

func encode(p []byte) string { return base64.StdEncoding.EncodeToString(p) }

func decode(p []byte) []byte {
	out, err := base64.StdEncoding.DecodeString(string(p))
	if err != nil {
		return nil
	}
	return out
}

// pods is an engine without containers: an exec's command is a word it knows.
type pods struct {
	mu    sync.Mutex
	ended []string // causes of the end of those that wait
}

func (p *pods) Running(_, container string) (string, error) {
	if container != "abc" && container != "a" {
		return "", errs.New(errs.NotFound, "container %q: not found", container)
	}
	return "abc", nil
}

func (p *pods) Ready(_, pod string) (string, error) { return pod, nil }

func (p *pods) Exec(ctx context.Context, ns, container string, cmd []string, a task.Attended) (uint32, error) {
	if ns != "k8s.io" || container != "abc" || !a.HangUp {
		return 0, fmt.Errorf("asked for %s/%s", ns, container)
	}
	switch cmd[0] {
	case "echo":
		_, _ = io.WriteString(a.Stdout, strings.Join(cmd[1:], " ")+"\n")
		if a.Stderr != nil {
			_, _ = io.WriteString(a.Stderr, "warning\n")
		}
		return 0, nil
	case "cat":
		_, err := io.Copy(a.Stdout, a.Stdin)
		return 0, err
	case "first": // needs no end of stdin
		var b [6]byte
		_, err := io.ReadFull(a.Stdin, b[:])
		_, _ = a.Stdout.Write(b[:])
		return 0, err
	case "fail":
		return 7, nil
	case "broken":
		return 0, errors.New("no such program")
	case "size":
		s, ok := a.Resize(ctx)
		_, _ = fmt.Fprintf(a.Stdout, "%d %d %v %v", s.Width, s.Height, ok, a.Terminal)
		return 0, nil
	case "big":
		chunk := []byte(strings.Repeat("0123456789abcdef", 2048))
		for range 256 {
			if _, err := a.Stdout.Write(chunk); err != nil {
				return 0, err
			}
		}
		return 0, nil
	case "wait":
		<-ctx.Done()
		p.mu.Lock()
		defer p.mu.Unlock()
		p.ended = append(p.ended, context.Cause(ctx).Error())
		return 0, context.Cause(ctx)
	}
	return 127, nil
}

func (p *pods) causes() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.ended)
}

func (p *pods) Attach(ctx context.Context, _, container string, a task.Attachment) error {
	_, err := io.WriteString(a.Stdout, "attached to "+container)
	return err
}

func (p *pods) PortForward(ctx context.Context, _, pod string, port int32, stream io.ReadWriteCloser) error {
	if port == 1 {
		return errors.New("nobody listens")
	}
	_, err := fmt.Fprintf(stream, "%s:%d ", pod, port)
	if err == nil {
		_, err = io.Copy(stream, stream)
	}
	return err
}

func serve(t *testing.T, cfg Config) (*Server, *pods) {
	t.Helper()
	p := &pods{}
	cfg.Address, cfg.Namespace, cfg.Pods, cfg.Log = "127.0.0.1:0", "k8s.io", p, slog.New(slog.DiscardHandler)
	s, err := New(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve() }()
	t.Cleanup(func() {
		if err := errors.Join(s.Close(), <-done); err != nil {
			t.Error(err)
		}
	})
	return s, p
}

func (s *Server) exec(t *testing.T, o opts, cmd ...string) string {
	t.Helper()
	r, err := s.GetExec(&cri.ExecRequest{ContainerId: "a", Cmd: cmd, Tty: o.tty, Stdin: o.stdin != nil, Stdout: true, Stderr: o.stderr})
	if err != nil {
		t.Fatal(err)
	}
	return r.GetUrl()
}

type transport struct {
	name     string
	protocol string
	run      func(string, opts) (result, error)
	status   bool // ends with a status in JSON
}

var transports = []transport{
	{"spdy v4", "v4.channel.k8s.io", runSPDY, true},
	{"spdy v3", "v3.channel.k8s.io", runSPDY, false},
	{"spdy v2", "v2.channel.k8s.io", runSPDY, false},
	{"spdy v1", "channel.k8s.io", runSPDY, false},
	{"websocket v5", "v5.channel.k8s.io", runWebsocket, true},
	{"websocket v4", "v4.channel.k8s.io", runWebsocket, true},
	{"websocket v4 base64", "v4.base64.channel.k8s.io", runWebsocket, true},
	{"websocket v1", "channel.k8s.io", runWebsocket, false},
	{"websocket, none", "", runWebsocket, false},
}

func TestExec(t *testing.T) {
	s, _ := serve(t, Config{})
	for _, tr := range transports {
		t.Run(tr.name, func(t *testing.T) {
			o := opts{protocol: tr.protocol, stderr: true}
			if got, err := tr.run(s.exec(t, o, "echo", "hello", "there"), o); err != nil || got.stdout != "hello there\n" || got.stderr != "warning\n" {
				t.Errorf("echo: %+v %v", got, err)
			} else if tr.status && exitCode(t, got.status) != 0 {
				t.Errorf("echo: status %s", got.status)
			}
			got, err := tr.run(s.exec(t, o, "fail"), o)
			if tr.status && (err != nil || exitCode(t, got.status) != 7) {
				t.Errorf("exit code: %+v %v", got, err)
			}
			if tr.name == "spdy v1" {
				return // it resets the stream of its errors: that is how it was
			}
			if !tr.status && (err != nil || !strings.Contains(got.status, "exit code") || !strings.Contains(got.status, "7")) {
				t.Errorf("exit code: %+v %v", got, err)
			}
			if got, err = tr.run(s.exec(t, o, "broken"), o); err != nil || !strings.Contains(got.status, "no such program") {
				t.Errorf("an error: %+v %v", got, err)
			}
			if got, err = tr.run(s.exec(t, o, "big"), o); err != nil || len(got.stdout) != 8<<20 {
				t.Errorf("much output: %d bytes, %v", len(got.stdout), err)
			}
			o = opts{protocol: tr.protocol, stdin: strings.NewReader("123456rest")}
			if got, err = tr.run(s.exec(t, o, "first"), o); err != nil || got.stdout != "123456" {
				t.Errorf("stdin: %+v %v", got, err)
			}
		})
	}
}

// The end of stdin reaches the process where the protocol has a word for it.
func TestExecStdinEnds(t *testing.T) {
	s, _ := serve(t, Config{})
	for _, i := range []int{0, 1, 2, 4} {
		tr := transports[i]
		o := opts{protocol: tr.protocol, stdin: strings.NewReader(strings.Repeat("x", 100_000))}
		if got, err := tr.run(s.exec(t, o, "cat"), o); err != nil || len(got.stdout) != 100_000 {
			t.Errorf("%s: %d bytes, %v", tr.name, len(got.stdout), err)
		}
	}
}

func TestExecResize(t *testing.T) {
	s, _ := serve(t, Config{})
	for _, i := range []int{0, 1, 4, 5} {
		tr := transports[i]
		o := opts{protocol: tr.protocol, tty: true, width: 120, height: 33}
		if got, err := tr.run(s.exec(t, o, "size"), o); err != nil || got.stdout != "120 33 true true" {
			t.Errorf("%s: %+v %v", tr.name, got, err)
		}
	}
}

func TestAttach(t *testing.T) {
	s, _ := serve(t, Config{})
	for _, tr := range transports {
		r, err := s.GetAttach(&cri.AttachRequest{ContainerId: "a", Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := tr.run(r.GetUrl(), opts{protocol: tr.protocol}); err != nil || got.stdout != "attached to abc" {
			t.Errorf("%s: %+v %v", tr.name, got, err)
		}
	}
}

func TestRefusals(t *testing.T) {
	s, _ := serve(t, Config{})
	for name, r := range map[string]*cri.ExecRequest{
		"no container":    {Cmd: []string{"x"}, Stdout: true},
		"no command":      {ContainerId: "abc", Stdout: true},
		"no stream":       {ContainerId: "abc", Cmd: []string{"x"}},
		"tty and stderr":  {ContainerId: "abc", Cmd: []string{"x"}, Stdout: true, Stderr: true, Tty: true},
		"other container": {ContainerId: "other", Cmd: []string{"x"}, Stdout: true},
	} {
		if _, err := s.GetExec(r); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := s.GetPortForward(&cri.PortForwardRequest{PodSandboxId: "p", Port: []int32{70000}}); err == nil {
		t.Error("port 70000: no error")
	}
	get := func(address string) int {
		resp, err := http.Get(address)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	base := "http://" + s.Addr().String()
	for _, p := range []string{"/", "/exec/", "/exec/nothing", "/exec", "/metrics", "//", "/exec/../attach"} {
		if code := get(base + p); code != http.StatusNotFound {
			t.Errorf("%s: %d", p, code)
		}
	}
	address := s.exec(t, opts{}, "echo")
	if code := get(strings.Replace(address, "/exec/", "/attach/", 1)); code != http.StatusNotFound {
		t.Errorf("an exec's token used to attach: %d", code)
	}
	if code := get(address); code == http.StatusNotFound {
		t.Errorf("first use: %d", code)
	}
	if code := get(address); code != http.StatusNotFound {
		t.Errorf("second use: %d", code)
	}
	req, err := http.NewRequest(http.MethodDelete, s.exec(t, opts{}, "echo"), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("DELETE: %d", resp.StatusCode)
	}
}

func TestTokensEnd(t *testing.T) {
	var tok tokens
	first, err := tok.add("exec", &session{})
	if err != nil {
		t.Fatal(err)
	}
	for range maxTokens - 1 {
		if _, err := tok.add("exec", &session{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := tok.add("exec", &session{}); !errors.Is(err, errs.ResourceExhausted) {
		t.Errorf("too many: %v", err)
	}
	w := tok.all["exec/"+first]
	w.until = time.Now().Add(-time.Second)
	tok.all["exec/"+first] = w
	if _, ok := tok.take("exec", first); ok {
		t.Error("an old token was taken")
	}
	if _, err := tok.add("exec", &session{}); err != nil {
		t.Errorf("after one was used: %v", err)
	}
}

// A client that leaves ends its session, whatever the protocol, and also if it has sent
// more than anybody takes.
func TestClientLeaves(t *testing.T) {
	s, p := serve(t, Config{})
	goroutines := runtime.NumGoroutine()
	var conns []io.Closer
	for range 5 {
		conn, err := dialSPDY(s.exec(t, opts{stderr: true}, "wait"), "v4.channel.k8s.io")
		if err != nil {
			t.Fatal(err)
		}
		for _, kind := range []string{"error", "stdout", "stderr"} {
			if _, err := conn.CreateStream(http.Header{"Streamtype": {kind}}); err != nil {
				t.Fatal(err)
			}
		}
		conns = append(conns, conn)
		// Its close is an abort: what lies in its buffers would come before the end, and
		// nobody takes it.
		ws, err := dialWebsocket(s.exec(t, opts{stdin: strings.NewReader("")}, "wait"), "v5.channel.k8s.io", abort)
		if err != nil {
			t.Fatal(err)
		}
		_ = ws.SetWriteDeadline(time.Now().Add(time.Second))
		for { // until nothing fits any more
			if _, err := ws.Write(append([]byte{0}, make([]byte, 64<<10)...)); err != nil {
				break
			}
		}
		conns = append(conns, ws)
	}
	for _, c := range conns {
		_ = c.Close()
	}
	until(t, "all sessions ended", func() bool { return p.causes() == 10 })
	until(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= goroutines+2 })
}

func TestCloseEndsSessions(t *testing.T) {
	p := &pods{}
	s, err := New(context.Background(), Config{Address: "127.0.0.1:0", Namespace: "k8s.io", Pods: p, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve() }()
	ws, err := dialWebsocket(s.exec(t, opts{}, "wait"), "v5.channel.k8s.io")
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	var hello []byte // the session has begun
	if err := websocket.Message.Receive(ws, &hello); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := errors.Join(s.Close(), <-done); err != nil {
		t.Error(err)
	}
	if d := time.Since(begin); d > 2*time.Second || p.causes() != 1 || p.ended[0] != errClosing.Error() {
		t.Errorf("it took %s, ended: %v", d, p.ended)
	}
}

func TestTLS(t *testing.T) {
	cert := httptest.NewUnstartedServer(nil)
	cert.StartTLS()
	defer cert.Close()
	s, p := serve(t, Config{TLS: &tls.Config{Certificates: cert.TLS.Certificates}})
	for _, tr := range transports {
		o := opts{protocol: tr.protocol}
		address := s.exec(t, o, "echo", "hello")
		if !strings.HasPrefix(address, "https://") {
			t.Fatalf("address %s", address)
		}
		if got, err := tr.run(address, o); err != nil || got.stdout != "hello\n" {
			t.Errorf("%s: %+v %v", tr.name, got, err)
		}
	}
	ws, err := dialWebsocket(s.exec(t, opts{}, "wait"), "v5.channel.k8s.io")
	if err != nil {
		t.Fatal(err)
	}
	var hello []byte // the session has begun
	if err := websocket.Message.Receive(ws, &hello); err != nil {
		t.Fatal(err)
	}
	_ = ws.Close()
	until(t, "the session ended", func() bool { return p.causes() == 1 })
}

func TestPortForward(t *testing.T) {
	s, _ := serve(t, Config{})
	address := func() string {
		r, err := s.GetPortForward(&cri.PortForwardRequest{PodSandboxId: "pod", Port: []int32{80}})
		if err != nil {
			t.Fatal(err)
		}
		return r.GetUrl()
	}
	for name, dial := range map[string]func() (httpstream.Connection, error){
		"spdy":      func() (httpstream.Connection, error) { return dialSPDY(address(), "portforward.k8s.io") },
		"websocket": func() (httpstream.Connection, error) { return dialTunnel(address()) },
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := dial()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			var wg sync.WaitGroup
			for i := range 20 {
				wg.Add(1)
				go func() {
					defer wg.Done()
					data, _, err := forwardStream(conn, 8000+i, i)
					if err != nil {
						t.Error(err)
						return
					}
					_, _ = fmt.Fprintf(data, "over %d", i)
					_ = data.Close()
					got, err := io.ReadAll(data)
					if want := fmt.Sprintf("pod:%d over %d", 8000+i, i); err != nil || string(got) != want {
						t.Errorf("got %q %v, want %q", got, err, want)
					}
				}()
			}
			wg.Wait()
			_, fault, err := forwardStream(conn, 1, 99)
			if err != nil && fault == nil { // the stream of data may have been reset already
				t.Fatal(err)
			}
			if got, _ := io.ReadAll(fault); !strings.Contains(string(got), "nobody listens") {
				t.Errorf("an error: %q", got)
			}
		})
	}
}

// Before the tunnel, each port had two channels, and the first message on each was its
// number.
func TestPortForwardOldWebsocket(t *testing.T) {
	s, _ := serve(t, Config{})
	r, err := s.GetPortForward(&cri.PortForwardRequest{PodSandboxId: "pod", Port: []int32{80}})
	if err != nil {
		t.Fatal(err)
	}
	ws, err := dialWebsocket(r.GetUrl(), "v4.channel.k8s.io")
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	if err := websocket.Message.Send(ws, []byte("\x00hello")); err != nil {
		t.Fatal(err)
	}
	got := map[byte]string{}
	_ = ws.SetReadDeadline(time.Now().Add(10 * time.Second))
	for got[0] != "P\x00pod:80 hello" || got[1] != "P\x00" {
		var data []byte
		if err := websocket.Message.Receive(ws, &data); err != nil {
			t.Fatalf("%v, after %q", err, got)
		}
		got[data[0]] += string(data[1:])
	}
}
