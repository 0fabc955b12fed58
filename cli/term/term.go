// Package term connects a user's terminal or pipes with a container's streams: raw
// mode, the size, detach keys, FIFOs for execs and the attach socket of the shim.
// It owns the FIFOs and sockets that it opens and puts the terminal back as it was.
package term

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"
)

// Is reports whether f is a terminal.
func Is(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// Size is the terminal's columns and rows; 80 and 24 if nobody knows.
func Size(f *os.File) (columns, rows int) {
	w, h, err := term.GetSize(int(f.Fd()))
	if err != nil || w <= 0 || h <= 0 {
		return 80, 24
	}
	return w, h
}

// Raw hands every key to the program; back puts the terminal as it was, and may be
// called again. Without a terminal it does nothing.
func Raw(f *os.File) (back func(), err error) {
	if !Is(f) {
		return func() {}, nil
	}
	old, err := term.MakeRaw(int(f.Fd()))
	if err != nil {
		return nil, err
	}
	return func() { _ = term.Restore(int(f.Fd()), old) }, nil // a terminal that is gone needs nothing
}

// Secret reads a line from a terminal without showing it.
func Secret(f *os.File) (string, error) {
	b, err := term.ReadPassword(int(f.Fd()))
	return string(b), err
}

// FollowSize calls set with the size now and after each change, until ctx ends.
func FollowSize(ctx context.Context, f *os.File, set func(columns, rows uint16)) {
	if !Is(f) {
		return
	}
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	// owner: it ends with ctx, which the caller's session ends.
	go func() {
		defer signal.Stop(changed)
		for {
			w, h := Size(f)
			set(uint16(min(w, 65535)), uint16(min(h, 65535)))
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
}
