package logfile

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func line(n int, stream, tag, text string) string {
	return fmt.Sprintf("2026-11-29T10:00:%02d.5Z %s %s %s\n", n, stream, tag, text)
}

func write(t *testing.T, name, text string) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	write(t, path+".2", line(1, "stdout", "F", "one")+"torn line\n"+line(2, "stderr", "F", "two"))
	write(t, path+".1", line(3, "stdout", "P", "thr")+line(3, "stdout", "F", "ee"))
	write(t, path, line(4, "stdout", "F", "")+line(5, "stdout", "P", "no end"))
	at := func(n int) time.Time { return time.Date(2026, 11, 29, 10, 0, n, 0, time.UTC) }
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{Tail: -1}, "one\ntwo\nthree\n\nno end"},
		{Options{Tail: 2}, "three\n\nno end"},
		{Options{Tail: 0}, "no end"},
		{Options{Tail: -1, Since: at(3)}, "three\n\nno end"},
		{Options{Tail: -1, Until: at(3)}, "one\ntwo\n"},
	} {
		var b strings.Builder
		if err := Read(t.Context(), path, c.o, func(e Entry) error { b.Write(e.Bytes()); return nil }); err != nil {
			t.Fatal(err)
		}
		if b.String() != c.want {
			t.Errorf("%+v: %q, want %q", c.o, b.String(), c.want)
		}
	}
}

func TestFollowThroughRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	write(t, path, line(1, "stdout", "F", "0"))
	ended, got := make(chan struct{}), make(chan string, 100)
	done := make(chan error, 1)
	go func() {
		done <- Read(t.Context(), path, Options{Tail: -1, Ended: ended}, func(e Entry) error { got <- string(e.Content); return nil })
	}()
	next := func(want string) {
		t.Helper()
		select {
		case s := <-got:
			if s != want {
				t.Fatalf("got %q, want %q", s, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%q does not come", want)
		}
	}
	next("0")
	write(t, path, line(1, "stdout", "F", "1"))
	next("1")
	rotate := func() {
		for i := 2; i >= 1; i-- {
			_ = os.Rename(fmt.Sprintf("%s.%d", path, i), fmt.Sprintf("%s.%d", path, i+1))
		}
		if err := os.Rename(path, path+".1"); err != nil {
			t.Fatal(err)
		}
	}
	write(t, path, line(1, "stdout", "F", "2"))
	rotate()
	write(t, path, line(1, "stdout", "F", "3"))
	rotate()
	write(t, path, line(1, "stdout", "F", "4"))
	for _, s := range []string{"2", "3", "4"} {
		next(s)
	}
	write(t, path, line(1, "stdout", "F", "5"))
	close(ended)
	next("5")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestFollowEndsWithItsContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	write(t, path, "")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := Read(ctx, path, Options{Tail: -1, Ended: make(chan struct{})}, func(Entry) error { return nil }); err == nil {
		t.Error("no error")
	}
}
