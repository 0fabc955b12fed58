package stdio

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/attach"
	"github.com/berthd/berth/host/sock"
	"github.com/berthd/berth/shim/wire"
)

func open(t *testing.T, io wire.Stdio) (*Stdio, string) {
	t.Helper()
	dir := t.TempDir()
	s, err := Open(context.Background(), Config{Stdio: io, ID: "c", Bundle: dir, AttachAt: "attach.sock", Log: func(m string) { t.Log(m) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s, dir
}

// dup keeps an end that the process would have.
func dup(t *testing.T, f *os.File) *os.File {
	t.Helper()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	d := os.NewFile(uintptr(fd), f.Name())
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func dial(t *testing.T, dir string) *attach.Client {
	t.Helper()
	conn, err := sock.Dial(filepath.Join(dir, "attach.sock"), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	c := attach.NewClient(conn)
	if f, err := c.Next(); err != nil || f.Kind != attach.Hello {
		t.Fatalf("hello: %v %v", f.Kind, err)
	}
	return c
}

// Clients that read get all, in order; one that does not is cut off; the process waits
// for none of them.
func TestAttachClients(t *testing.T) {
	s, dir := open(t, wire.Stdio{Stdout: "log:", Stderr: "log:"})
	stdout := dup(t, s.Child().Stdout)
	if err := s.Started(nil); err != nil {
		t.Fatal(err)
	}
	slow := dial(t, dir)
	const lines = 200_000
	var wg sync.WaitGroup
	for range 8 {
		c := dial(t, dir)
		wg.Add(1)
		go func() {
			defer wg.Done()
			var got bytes.Buffer
			for {
				f, err := c.Next()
				if err != nil {
					t.Errorf("after %d bytes: %v", got.Len(), err)
					return
				}
				if f.Kind == attach.Exit {
					if status, ok := attach.Status(f.Data); !ok || status != 3 {
						t.Errorf("status %d", status)
					}
					break
				}
				got.Write(f.Data)
			}
			n := 0
			for line := range strings.Lines(got.String()) {
				if line != fmt.Sprintf("%d\n", n) {
					t.Errorf("line %d is %q", n, line)
					return
				}
				n++
			}
			if n != lines {
				t.Errorf("%d lines, want %d", n, lines)
			}
		}()
	}
	for n := range lines {
		if n%500 == 0 {
			time.Sleep(time.Millisecond) // a client may not lag more than a megabyte
		}
		if _, err := fmt.Fprintf(stdout, "%d\n", n); err != nil {
			t.Fatal(err)
		}
	}
	_ = stdout.Close()
	s.Exited(3)
	wg.Wait()
	for {
		f, err := slow.Next()
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, unix.ECONNRESET) {
				t.Error(err)
			}
			break
		}
		if f.Kind == attach.Exit {
			t.Error("a client that did not read was told the end")
			break
		}
	}
}

func TestAttachTooMany(t *testing.T) {
	s, dir := open(t, wire.Stdio{Stdout: "log:", Stderr: "log:"})
	if err := s.Started(nil); err != nil {
		t.Fatal(err)
	}
	for range maxClients {
		dial(t, dir)
	}
	conn, err := sock.Dial(filepath.Join(dir, "attach.sock"), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := attach.NewClient(conn).Next(); !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("one client too many: %v", err)
	}
}

// Streams that a daemon hands over are the process's own, and the daemon's leaving is
// told once.
func TestPassed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := sock.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	given := make(chan *os.File, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			err = sock.SendFile(conn, "out", write)
		}
		if err != nil {
			t.Error(err)
		}
		_ = write.Close()
		given <- conn
	}()
	gone := make(chan struct{}, 2)
	s, err := Open(context.Background(), Config{
		Stdio: wire.Stdio{Stdout: "pass://" + path}, ID: "c", Bundle: t.TempDir(), Log: func(m string) { t.Log(m) }, Gone: func() { gone <- struct{}{} },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	conn := <-given
	flags, err := unix.FcntlInt(s.Child().Stdout.Fd(), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_NONBLOCK != 0 {
		t.Errorf("the process would get a stream that does not block: %x %v", flags, err)
	}
	if _, err := s.Child().Stdout.WriteString("hello"); err != nil {
		t.Fatal(err)
	}
	if err := s.Started(nil); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(read); err != nil || string(got) != "hello" {
		t.Errorf("got %q, %v", got, err)
	}
	select {
	case <-gone:
		t.Error("the daemon is said to have left")
	case <-time.After(50 * time.Millisecond):
	}
	_ = conn.Close()
	select {
	case <-gone:
	case <-time.After(10 * time.Second):
		t.Error("the daemon's leaving is not told")
	}
}

// A daemon that does not hand over what it promised fails the exec, and is not waited
// for when the caller has left.
func TestPassedNever(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := sock.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if _, err := Open(ctx, Config{Stdio: wire.Stdio{Stdout: "pass://" + path}, Bundle: t.TempDir(), Log: func(string) {}}); err == nil || time.Since(begin) > 5*time.Second {
		t.Errorf("nothing handed over: %v after %s", err, time.Since(begin))
	}
	if _, err := Open(ctx, Config{Stdio: wire.Stdio{Stdout: "pass:///a", Stderr: "pass:///b"}, Bundle: t.TempDir(), Log: func(string) {}}); err == nil {
		t.Error("two places to fetch from were taken")
	}
}
