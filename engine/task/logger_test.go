package task

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// shared is a buffer that may be read while it is written.
type shared struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *shared) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *shared) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func soon(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}

// entries are a log without its times.
func entries(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return regexp.MustCompile(`(?m)^\S+ `).ReplaceAllString(string(data), "")
}

// A log is a log whoever's shim it is: written, attached to, opened again.
func TestLogOfAnyShim(t *testing.T) {
	for _, runtime := range shims(t) {
		t.Run(filepath.Base(runtime), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "c.log")
			b := newBox(t, runtime, func(r *CreateRequest, script *string) {
				r.Stdout, r.Stderr, r.Stdin = "log://"+path+"?max-line=16384", "log://"+path+"?max-line=16384", "attach:?once=1"
				*script = `echo begin; echo err >&2; while read line; do echo "got $line"; done; echo over`
			})
			ctx := context.Background()
			soon(t, "the log is written", func() bool { return strings.Contains(entries(t, path), "stdout F begin\n") })
			var out shared
			in, say := io.Pipe()
			t.Cleanup(func() { _ = say.Close() })
			done := make(chan error, 1)
			go func() { done <- b.tasks.Attach(ctx, b.v, b.id, Attachment{Stdin: in, Stdout: &out}) }()
			if _, err := io.WriteString(say, "one\n"); err != nil {
				t.Fatal(err)
			}
			soon(t, "the client sees it", func() bool { return out.String() == "got one\n" })
			soon(t, "the log has it", func() bool { return strings.HasSuffix(entries(t, path), "got one\n") })
			if err := os.Rename(path, path+".1"); err != nil {
				t.Fatal(err)
			}
			if err := b.tasks.ReopenLog(ctx, b.v, b.id); err != nil {
				t.Fatal(err)
			}
			_ = say.Close() // the end of stdin, which is taken once
			select {
			case err := <-done:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("the attachment does not end with the process")
			}
			if got := entries(t, path); got != "stdout F over\n" {
				t.Errorf("the new log is %q", got)
			}
			if got := entries(t, path+".1"); strings.Count(got, "\n") != 3 || !strings.Contains(got, "stderr F err\n") {
				t.Errorf("the old log is %q", got)
			}
		})
	}
}
