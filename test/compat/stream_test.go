package compat

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/lab"
)

const private = cri.NamespaceMode_CONTAINER

var transports = []string{"spdy", "websocket"}

// within waits for a client's end.
func (n *node) within(c *client, what string) {
	n.t.Helper()
	select {
	case <-c.done:
	case <-time.After(30 * time.Second):
		n.t.Fatalf("%s: not over within 30 s; stdout %q, stderr %q\n%s", what, c.text(&c.out), c.text(&c.err), n.d.Log)
	}
}

func (n *node) exec(container, transport string, a asked, cmd ...string) *client {
	n.t.Helper()
	r, err := n.rt().Exec(n.ctx, &cri.ExecRequest{ContainerId: container, Cmd: cmd, Stdin: a.stdin, Stdout: true, Stderr: a.stderr, Tty: a.tty})
	if err != nil {
		n.t.Fatal(err)
	}
	c, err := connect(r.GetUrl(), transport, a)
	if err != nil {
		n.t.Fatal(err)
	}
	return c
}

func (n *node) attach(container, transport string, a asked) *client {
	n.t.Helper()
	r, err := n.rt().Attach(n.ctx, &cri.AttachRequest{ContainerId: container, Stdin: a.stdin, Stdout: true, Stderr: a.stderr, Tty: a.tty})
	if err != nil {
		n.t.Fatal(err)
	}
	c, err := connect(r.GetUrl(), transport, a)
	if err != nil {
		n.t.Fatal(err)
	}
	return c
}

func (n *node) sync(container string, timeout int64, script string) (*cri.ExecSyncResponse, error) {
	return n.rt().ExecSync(n.ctx, &cri.ExecSyncRequest{ContainerId: container, Cmd: []string{"sh", "-c", script}, Timeout: timeout})
}

// running starts a container in a pod of its own.
func (n *node) running(name, script string, change func(*cri.ContainerConfig)) (pod, container string) {
	n.t.Helper()
	pc := n.podConfig(name, private)
	pod = n.runPod(pc)
	cc := n.containerConfig("c", script, private)
	if change != nil {
		change(cc)
	}
	container = n.create(pod, pc, cc)
	n.start(container)
	return pod, container
}

const idle = "trap 'exit 0' TERM; while :; do sleep 1; done"

// processes counts those of a container whose command line has a word.
func (n *node) processes(container, word string) int {
	n.t.Helper()
	r, err := n.sync(container, 0, "grep -al "+word+" /proc/[0-9]*/cmdline | grep -vc /$$/; true")
	if err != nil {
		n.t.Fatal(err)
	}
	count, err := strconv.Atoi(strings.TrimSpace(string(r.GetStdout())))
	if err != nil {
		n.t.Fatal(err)
	}
	return count - 1 // the grep itself
}

// fds counts the pipes and sockets of the daemon.
func (n *node) fds() int {
	n.t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", n.d.Process.Process.Pid)
	all, err := os.ReadDir(dir)
	if err != nil {
		n.t.Fatal(err)
	}
	count := 0
	for _, e := range all {
		to, _ := os.Readlink(filepath.Join(dir, e.Name())) // it may be closed by now
		if strings.HasPrefix(to, "pipe:") || strings.HasPrefix(to, "socket:") {
			count++
		}
	}
	return count
}

func TestStreamExec(t *testing.T) {
	n := newNode(t)
	_, id := n.running("exec", idle, nil)
	if _, err := n.sync(id, 0, "true"); err != nil {
		t.Fatal(err)
	}
	before := n.fds()
	for _, tr := range transports {
		t.Run(tr, func(t *testing.T) {
			c := n.exec(id, tr, asked{stderr: true}, "sh", "-c", "echo out; echo err >&2; exit 5")
			n.within(c, "exec")
			if code, err := c.code(); code != 5 || err != nil || c.text(&c.out) != "out\n" || c.text(&c.err) != "err\n" {
				t.Errorf("got %q, %q, code %d, %v", c.text(&c.out), c.text(&c.err), code, err)
			}
			c = n.exec(id, tr, asked{}, "/no/such/program")
			n.within(c, "a missing program")
			if _, err := c.code(); err == nil || !strings.Contains(err.Error(), "/no/such/program") {
				t.Errorf("a missing program: %v", err)
			}
			// Much both ways, and the end of stdin.
			data := make([]byte, 5<<20)
			for i := range data {
				data[i] = byte(rand.Uint32())
			}
			c = n.exec(id, tr, asked{stdin: true}, "cat")
			if _, err := io.Copy(c.stdin, bytes.NewReader(data)); err != nil {
				t.Fatal(err)
			}
			_ = c.stdin.Close()
			n.within(c, "cat")
			if code, err := c.code(); code != 0 || err != nil || c.text(&c.out) != string(data) {
				t.Errorf("%d bytes came back of %d, code %d, %v", len(c.text(&c.out)), len(data), code, err)
			}
			c = n.exec(id, tr, asked{stdin: true, tty: true}, "sh")
			if err := c.resize(101, 37); err != nil {
				t.Fatal(err)
			}
			lab.Until(t, 10*time.Second, "the terminal has its size", func() bool {
				_, _ = io.WriteString(c.stdin, "stty size\n")
				time.Sleep(50 * time.Millisecond)
				return strings.Contains(c.text(&c.out), "37 101")
			})
			_, _ = io.WriteString(c.stdin, "echo $TERM; exit 9\n")
			n.within(c, "a shell on a terminal")
			if code, err := c.code(); code != 9 || err != nil || !strings.Contains(c.text(&c.out), "xterm") {
				t.Errorf("got %q, code %d, %v", c.text(&c.out), code, err)
			}
			// A client that leaves takes its command along, a silent one too.
			c = n.exec(id, tr, asked{}, "sleep", "4711")
			lab.Until(t, 10*time.Second, "the command runs", func() bool { return n.processes(id, "4711") == 1 })
			c.leave()
			lab.Until(t, 5*time.Second, "the command has ended", func() bool { return n.processes(id, "4711") == 0 })
		})
	}
	lab.Until(t, 10*time.Second, "no file of the daemon stays open", func() bool { return n.fds() <= before })
}

func TestStreamExecSync(t *testing.T) {
	n := newNode(t)
	_, id := n.running("sync", idle, nil)
	r, err := n.sync(id, 10, "echo out; echo err >&2; exit 3")
	if err != nil || string(r.GetStdout()) != "out\n" || string(r.GetStderr()) != "err\n" || r.GetExitCode() != 3 {
		t.Errorf("got %v, %v", r, err)
	}
	before := n.fds()
	begin := time.Now()
	_, err = n.sync(id, 1, "sleep 4712 & sleep 4712")
	if took := time.Since(begin); status.Code(err) != codes.DeadlineExceeded || took > 5*time.Second {
		t.Errorf("a time-out: %v after %s", err, took)
	}
	lab.Until(t, 2*time.Second, "the command and its child have ended", func() bool { return n.processes(id, "4712") == 0 })
	much := &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", "head -c 40000000 /dev/zero; echo end >&2"}, Timeout: 60}
	if r, err = n.rt().ExecSync(n.ctx, much, grpc.MaxCallRecvMsgSize(16<<20)); err != nil || len(r.GetStdout()) < 10<<20 || len(r.GetStdout()) > 16<<20 || r.GetExitCode() != 0 {
		t.Errorf("much output: %d bytes, code %d, %v", len(r.GetStdout()), r.GetExitCode(), err)
	}
	begin = time.Now()
	if r, err = n.sync(id, 2, "echo done; sleep 4713 &"); err != nil || string(r.GetStdout()) != "done\n" || time.Since(begin) > 4*time.Second {
		t.Errorf("a child that keeps the output: %v, %v", r, err)
	}
	if _, err = n.sync(id, 5, "kill $(pgrep -f 4713 2>/dev/null || ps | grep '[4]713' | awk '{print $1}')"); err != nil {
		t.Error(err)
	}
	for what, code := range map[string]codes.Code{"nothere": codes.NotFound, "": codes.NotFound} {
		if _, err := n.sync(what, 1, "true"); status.Code(err) != code {
			t.Errorf("container %q: %v", what, err)
		}
	}
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			r, err := n.sync(id, 60, fmt.Sprintf("echo out%d; echo err%d >&2; exit %d", i, i, i))
			if err != nil || string(r.GetStdout()) != fmt.Sprintf("out%d\n", i) || string(r.GetStderr()) != fmt.Sprintf("err%d\n", i) || r.GetExitCode() != int32(i) {
				t.Errorf("%d: %v %v", i, r, err)
			}
		}()
	}
	wg.Wait()
	lab.Until(t, 10*time.Second, "no file of the daemon stays open", func() bool { return n.fds() <= before })
}

func TestStreamAttach(t *testing.T) {
	n := newNode(t)
	_, echo := n.running("echo", "while read line; do echo \"got $line\"; echo \"err $line\" >&2; [ \"$line\" = end ] && exit 6; done", func(c *cri.ContainerConfig) { c.Stdin = true })
	a, b := n.attach(echo, "spdy", asked{stdin: true, stderr: true}), n.attach(echo, "websocket", asked{stdin: true, stderr: true})
	see := func(c *client, text string) {
		t.Helper()
		lab.Until(t, 10*time.Second, "the client sees "+text, func() bool { return strings.Contains(c.text(&c.out)+c.text(&c.err), text) })
	}
	say := func(c *client, text string) {
		t.Helper()
		if _, err := io.WriteString(c.stdin, text+"\n"); err != nil {
			t.Fatal(err)
		}
	}
	// A client is let in before the shim has it: what is said now may pass it by.
	for _, c := range []*client{a, b} {
		lab.Until(t, 10*time.Second, "the client is attached", func() bool {
			say(a, "ready")
			time.Sleep(50 * time.Millisecond)
			return strings.Contains(c.text(&c.out)+c.text(&c.err), "ready")
		})
	}
	say(a, "one")
	see(a, "got one\n")
	see(b, "err one\n")
	say(b, "two")
	see(a, "got two\n")
	a.leave()
	say(b, "three") // stdin stays open when a client leaves
	see(b, "got three\n")
	_ = b.stdin.Close()
	c := n.attach(echo, "spdy", asked{stdin: true})
	say(c, "end")
	n.within(c, "the container's end")
	if s := n.ended(echo); s.GetExitCode() != 6 {
		t.Errorf("ended: %v", s)
	}
	text := n.log(n.status(echo).GetLogPath())
	ready := strings.Count(text, "got ready")
	if strings.Count(text, "got ")-ready != 4 || strings.Count(text, "stderr F err ")-ready != 4 {
		t.Errorf("log %q", text)
	}

	_, once := n.running("once", "cat; echo over", func(c *cri.ContainerConfig) { c.Stdin, c.StdinOnce = true, true })
	c = n.attach(once, "websocket", asked{stdin: true})
	say(c, "text")
	see(c, "text\n")
	_ = c.stdin.Close()
	n.within(c, "the end of stdin")
	if s := n.ended(once); s.GetExitCode() != 0 || c.text(&c.out) != "text\nover\n" {
		t.Errorf("stdin once: %q, %v", c.text(&c.out), s)
	}

	_, tty := n.running("tty", "trap 'stty size' WINCH; while :; do sleep 0.1; done", func(c *cri.ContainerConfig) { c.Stdin, c.Tty = true, true })
	c = n.attach(tty, "spdy", asked{stdin: true, tty: true})
	time.Sleep(200 * time.Millisecond)
	if err := c.resize(99, 33); err != nil {
		t.Fatal(err)
	}
	see(c, "33 99")
	c.leave()
	if s := n.status(tty); s.GetState() != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("after its client left: %v", s)
	}
}

func TestStreamPortForward(t *testing.T) {
	n := newNode(t)
	serve := func(port int) string { return fmt.Sprintf("nc -ll -p %d -e cat", port) }
	pod, _ := n.running("forward", serve(7007), nil)
	hostPort := lab.FreePort(t)
	hc := n.podConfig("hostnet", private)
	hc.Hostname = ""
	hc.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	host := n.runPod(hc)
	cc := n.containerConfig("c", serve(hostPort), private)
	cc.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	n.start(n.create(host, hc, cc))
	lab.Until(t, 10*time.Second, "the server listens", func() bool {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", hostPort))
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	before := n.fds()
	for _, tc := range []struct {
		pod  string
		port int
	}{{pod, 7007}, {host, hostPort}} {
		r, err := n.rt().PortForward(n.ctx, &cri.PortForwardRequest{PodSandboxId: tc.pod, Port: []int32{int32(tc.port)}})
		if err != nil {
			t.Fatal(err)
		}
		conn, err := dialSPDY(r.GetUrl(), "portforward.k8s.io")
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for i := range 40 {
			// One after the other until it answers: the server takes no more at once.
			data, _, err := forwarded(conn, tc.port, i)
			if err != nil {
				t.Fatal(err)
			}
			first := make([]byte, 1)
			if _, err := data.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(data, first); err != nil {
				t.Fatalf("connection %d: %v", i, err)
			}
			wg.Add(1)
			go func() {
				defer wg.Done()
				want := strings.Repeat(fmt.Sprintf("connection %d ", i), 10_000)
				go func() {
					_, _ = io.WriteString(data, want)
					_ = data.Close() // half: the rest must still come back
				}()
				if got, err := io.ReadAll(data); err != nil || string(got) != want {
					t.Errorf("connection %d: %d bytes of %d came back, %v", i, len(got), len(want), err)
				}
			}()
		}
		wg.Wait()
		_, fault, err := forwarded(conn, 7008, 1000)
		if fault == nil {
			t.Fatal(err)
		}
		if text, _ := io.ReadAll(fault); !strings.Contains(string(text), "connection refused") {
			t.Errorf("a closed port: %q", text)
		}
		_ = conn.Close()
	}
	lab.Until(t, 10*time.Second, "no file of the daemon stays open", func() bool { return n.fds() <= before })
}

// A daemon that dies takes its execs along, and nothing else.
func TestStreamDaemonDies(t *testing.T) {
	n := newNode(t)
	_, id := n.running("dies", idle, nil)
	c := n.exec(id, "spdy", asked{}, "sleep", "4714")
	lab.Until(t, 10*time.Second, "the command runs", func() bool { return n.processes(id, "4714") == 1 })
	n.d.Kill()
	n.within(c, "the death of the daemon")
	n.d.Start()
	t.Cleanup(n.removeAll)
	n.dial()
	lab.Until(t, 5*time.Second, "the command has ended", func() bool { return n.processes(id, "4714") == 0 })
	if s := n.status(id); s.GetState() != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container: %v", s)
	}
}

func endsWith(path, text string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil || size < int64(len(text)) {
		return false
	}
	last := make([]byte, len(text))
	_, err = f.ReadAt(last, size-int64(len(text)))
	return err == nil && string(last) == text
}

// A container writes as fast as it can while the daemon is away and while its log is
// rotated: no line is lost or torn.
func TestStreamLogsWithoutDaemon(t *testing.T) {
	n := newNode(t)
	const lines = 1_500_000 // 75 MB in the log
	_, id := n.running("logs", fmt.Sprintf("read go; seq 1 %d; echo over; sleep 1000", lines), func(c *cri.ContainerConfig) { c.Stdin = true })
	path := n.status(id).GetLogPath()
	c := n.attach(id, "spdy", asked{stdin: true})
	if _, err := io.WriteString(c.stdin, "go\n"); err != nil {
		t.Fatal(err)
	}
	var files []string
	for i := range 5 {
		old := fmt.Sprintf("%s.%d", path, i)
		if err := os.Rename(path, old); err != nil {
			t.Fatal(err)
		}
		files = append(files, old)
		if _, err := n.rt().ReopenContainerLog(n.ctx, &cri.ReopenContainerLogRequest{ContainerId: id}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	n.d.Kill()
	if endsWith(path, "over\n") {
		t.Fatal("the container was done before the daemon was killed: this test shows nothing")
	}
	lab.Until(t, 60*time.Second, "the container has written all without a daemon", func() bool { return endsWith(path, "over\n") })
	n.d.Start()
	t.Cleanup(n.removeAll)
	n.dial()
	next := 1
	for _, f := range append(files, path) {
		for line := range strings.Lines(n.log(f)) {
			at := strings.Index(line, " stdout F ")
			if at < 0 || !strings.HasSuffix(line, "\n") {
				t.Fatalf("%s: %q", filepath.Base(f), line)
			}
			if text := strings.TrimSuffix(line[at+10:], "\n"); next <= lines && text != strconv.Itoa(next) {
				t.Fatalf("%s: line %d is %q", filepath.Base(f), next, text)
			}
			next++
		}
	}
	if next != lines+2 {
		t.Errorf("%d lines, want %d", next-1, lines+1)
	}
}
