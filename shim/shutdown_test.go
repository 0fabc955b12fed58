package shim

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/berthd/berth/host/sock"
	"github.com/berthd/berth/shim/wire"
)

// TestNobodyJoinsAShimThatEnds: once Shutdown is answered, a start for the same group
// must make a new shim. (A container that was deleted and made again at once got the
// old one, which was on its way out.)
func TestNobodyJoinsAShimThatEnds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := sock.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s := New(Config{Namespace: "n", Log: func(string) {}})
	done := make(chan error, 1)
	go func() {
		done <- s.Serve(l, func() { _ = os.Remove(path); l.Close() })
	}()
	c, err := sock.Dial(path, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for served := false; !served; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		served = s.conns > 0
		s.mu.Unlock()
	}
	if err := s.shutdown(t.Context(), &wire.Shutdown{}); err != nil {
		t.Fatal(err)
	}
	if c, err := sock.Dial(path, 0); err == nil {
		_ = c.Close()
		t.Error("a shim that has answered Shutdown takes connections")
	}
	if l, err := listenOrJoin(path); err != nil || l == nil {
		t.Errorf("a new shim cannot take the place: %v %v", l, err)
	} else {
		l.Close()
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
