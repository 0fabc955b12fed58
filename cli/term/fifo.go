package term

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// FIFOs are the streams of one exec: the shim opens the other ends. A reader that
// is slow makes the process wait, and nothing is lost.
type FIFOs struct {
	dir                   string
	Stdin, Stdout, Stderr string // "" where there is none
	in, out, err          *os.File
	writing               atomic.Int32 // copies that are inside a write of the caller's
	moved                 atomic.Int64 // when bytes last came, in ns since 1970
}

// MakeFIFOs makes and opens them. With a terminal there is no stderr.
func MakeFIFOs(stdin, terminal bool) (*FIFOs, error) {
	base := "/run"
	if _, err := os.Stat(base); err != nil {
		base = ""
	}
	dir, err := os.MkdirTemp(base, "berth-exec-")
	if err != nil {
		return nil, fmt.Errorf("streams of the exec: %w", err)
	}
	f := &FIFOs{dir: dir}
	f.moved.Store(time.Now().UnixNano())
	make := func(name string, mode int) (string, *os.File, error) {
		path := filepath.Join(dir, name)
		if err := unix.Mkfifo(path, 0o600); err != nil {
			return "", nil, fmt.Errorf("streams of the exec: %s: %w", path, err)
		}
		// Opened for both directions it does not wait for the other end.
		file, err := os.OpenFile(path, mode|unix.O_NONBLOCK, 0)
		return path, file, err
	}
	if f.Stdout, f.out, err = make("stdout", os.O_RDONLY); err == nil && !terminal {
		f.Stderr, f.err, err = make("stderr", os.O_RDONLY)
	}
	if err == nil && stdin {
		f.Stdin, f.in, err = make("stdin", os.O_RDWR)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Opened tells that the shim has its ends: the files are not needed any more.
func (f *FIFOs) Opened() { _ = os.RemoveAll(f.dir) }

// Copy copies the output until the process and its shim have closed it, or until
// one of the writers does not take it any more.
func (f *FIFOs) Copy(stdout, stderr io.Writer) error {
	done := make(chan error, 2) // both may end after Copy has
	// owner: Close ends it.
	go func() { done <- f.copyOut(stdout, f.out) }()
	if f.err == nil {
		return <-done
	}
	// owner: Close ends it.
	go func() { done <- f.copyOut(stderr, f.err) }()
	if err := <-done; err != nil {
		return err
	}
	return <-done
}

// Idle is how long no output has come; 0 while the caller's writer has not taken
// what came.
func (f *FIFOs) Idle() time.Duration {
	if f.writing.Load() > 0 {
		return 0
	}
	return time.Since(time.Unix(0, f.moved.Load()))
}

// watched notes when a writer takes its time.
type watched struct {
	f *FIFOs
	w io.Writer
}

func (d watched) Write(p []byte) (int, error) {
	d.f.writing.Add(1)
	defer func() {
		d.f.moved.Store(time.Now().UnixNano())
		d.f.writing.Add(-1)
	}()
	return d.w.Write(p)
}

func (f *FIFOs) copyOut(w io.Writer, r *os.File) error {
	_, err := io.Copy(watched{f, w}, onlyReader{r})
	if err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// Discard reads what still comes and forgets it, until Close.
func (f *FIFOs) Discard() {
	var g errgroup.Group
	for _, r := range []*os.File{f.out, f.err} {
		if r != nil {
			g.Go(func() error { return f.copyOut(io.Discard, r) })
		}
	}
	_ = g.Wait() // closed
}

// onlyReader hides what would make io.Copy splice: a FIFO that is not yet open at
// the other end reads as ended then.
type onlyReader struct{ io.Reader }

// Input copies r to the process until r ends.
func (f *FIFOs) Input(r io.Reader) error {
	_, err := io.Copy(f.in, onlyReader{r})
	if errors.Is(err, ErrDetached) {
		return err
	}
	return nil // the process does not read any more
}

// CloseInput closes our end of stdin; the shim must be told, too.
func (f *FIFOs) CloseInput() {
	if f.in != nil {
		_ = f.in.Close()
	}
}

// Close lets go of everything; what blocks in Copy or Input returns.
func (f *FIFOs) Close() {
	for _, file := range []*os.File{f.in, f.out, f.err} {
		if file != nil {
			_ = file.Close()
		}
	}
	f.Opened()
}
