// Package logfile reads the log files that shims write, in the CRI's format: with
// the rotated ones before them, from the end, and as they grow. It owns open files
// and an inotify descriptor while it follows; it never writes.
package logfile

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Entry is one line of a file. Partial lines go on in the next entry of their
// stream.
type Entry struct {
	Time    time.Time
	Stderr  bool
	Partial bool
	Content []byte // without the newline; valid until the next entry
}

// Bytes is what the container wrote.
func (e Entry) Bytes() []byte {
	if e.Partial {
		return e.Content
	}
	return append(e.Content, '\n')
}

// parse reads "TIME STREAM TAG CONTENT"; ok is false for a torn line.
func parse(line []byte) (e Entry, ok bool) {
	var part [3][]byte
	for i := range part {
		j := bytes.IndexByte(line, ' ')
		if j < 0 {
			return e, false
		}
		part[i], line = line[:j], line[j+1:]
	}
	t, err := time.Parse(time.RFC3339Nano, string(part[0]))
	if err != nil {
		return e, false
	}
	return Entry{Time: t, Stderr: string(part[1]) == "stderr", Partial: bytes.HasPrefix(part[2], []byte("P")), Content: line}, true
}

// Options says what to read.
type Options struct {
	Tail         int // lines from the end; below 0 all
	Since, Until time.Time
	// Ended, if set, makes the reader follow: it is closed when no more is written.
	Ended <-chan struct{}
}

// maxRotated is the largest number of a rotated file that is looked for.
const maxRotated = 1000

// files lists the log's files, the oldest first.
func files(path string) []string {
	var out []string
	for i := 1; i < maxRotated; i++ {
		name := path + "." + strconv.Itoa(i)
		if _, err := os.Lstat(name); err != nil {
			break
		}
		out = append([]string{name}, out...)
	}
	return append(out, path)
}

// errEnough ends a reading that is past Until.
var errEnough = errors.New("enough")

// Read gives the entries to put, in order. It returns when everything there has
// been read, or with Ended when that is closed and everything has been read.
func Read(ctx context.Context, path string, o Options, put func(Entry) error) error {
	r := &reader{path: path, put: func(e Entry) error {
		if !o.Until.IsZero() && e.Time.After(o.Until) {
			return errEnough
		}
		if e.Time.Before(o.Since) {
			return nil
		}
		return put(e)
	}}
	defer r.close()
	if o.Ended != nil {
		if err := r.watch(); err != nil {
			return err
		}
	}
	err := r.old(o)
	if err == nil && o.Ended != nil {
		err = r.follow(ctx, o.Ended)
	}
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

type reader struct {
	path   string
	put    func(Entry) error
	file   *os.File // the current one
	buf    *bufio.Reader
	half   []byte // a line that has not ended
	notify *os.File
}

func (r *reader) close() {
	for _, f := range []*os.File{r.file, r.notify} {
		if f != nil {
			_ = f.Close() // only read from
		}
	}
}

// old reads what is there and leaves the current file open.
func (r *reader) old(o Options) error {
	all := files(r.path)
	skip := 0
	if o.Tail >= 0 {
		total := 0
		for _, name := range all {
			n, err := count(name)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			total += n
		}
		skip = max(0, total-o.Tail)
	}
	put := r.put
	r.put = func(e Entry) error {
		if skip > 0 {
			if !e.Partial {
				skip--
			}
			return nil
		}
		return put(e)
	}
	defer func() { r.put = put }()
	for _, name := range all {
		f, err := os.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // rotated away, or not begun
		}
		if err != nil {
			return fmt.Errorf("read log: %w", err)
		}
		r.use(f)
		if err := r.drain(); err != nil {
			return err
		}
	}
	return nil
}

// count counts the whole lines of a file as the container wrote them.
func count(name string) (int, error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	n := 0
	r := &reader{put: func(e Entry) error {
		if !e.Partial {
			n++
		}
		return nil
	}}
	r.buf = bufio.NewReaderSize(f, bufferSize)
	return n, r.drain()
}

const bufferSize = 64 << 10

func (r *reader) use(f *os.File) {
	if r.file != nil {
		_ = r.file.Close() // only read from
	}
	r.file, r.buf, r.half = f, bufio.NewReaderSize(f, bufferSize), nil
}

// drain reads whole lines until the end of the file.
func (r *reader) drain() error {
	for {
		line, err := r.buf.ReadSlice('\n')
		if len(r.half) > 0 || err != nil {
			r.half = append(r.half, line...)
			line = r.half
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read log: %w", err)
		}
		e, ok := parse(line[:len(line)-1])
		r.half = r.half[:0]
		if !ok {
			continue
		}
		if err := r.put(e); err != nil {
			return err
		}
	}
}

// watch has the kernel tell of changes in the log's directory (inotify(7)).
func (r *reader) watch() error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("follow log: %w", err)
	}
	r.notify = os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, filepath.Dir(r.path), unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_DELETE_SELF); err != nil {
		return fmt.Errorf("follow log in %s: %w", filepath.Dir(r.path), err)
	}
	return nil
}

// follow reads on as the log grows and is rotated.
func (r *reader) follow(ctx context.Context, ended <-chan struct{}) error {
	stop := context.AfterFunc(ctx, r.wake)
	defer stop()
	last := make(chan struct{})
	defer close(last)
	// owner: it ends with follow, by last.
	go func() {
		select {
		case <-ended:
			r.wake()
		case <-last:
		}
	}()
	events := make([]byte, 4096)
	for {
		over := false
		select {
		case <-ended:
			over = true
		default:
		}
		if err := r.catchUp(); err != nil {
			return err
		}
		if over {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		_, err := r.notify.Read(events)
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("follow log: %w", err)
		}
	}
}

// wake ends a wait for changes; follow looks why.
func (r *reader) wake() { _ = r.notify.SetReadDeadline(time.Unix(1, 0)) }

// catchUp reads the current file, and what has been rotated since.
func (r *reader) catchUp() error {
	for {
		if r.file != nil {
			if err := r.drain(); err != nil {
				return err
			}
		}
		next, err := r.next()
		if err != nil || next == nil {
			return err
		}
		// The old file may have got its last lines between drain and rotation.
		if r.file != nil {
			if err := r.drain(); err != nil {
				_ = next.Close()
				return err
			}
		}
		r.use(next)
	}
}

// next opens the file after the one that is open; nil if that is still the current
// one. Files that were rotated while nobody looked are read too.
func (r *reader) next() (*os.File, error) {
	var own os.FileInfo
	if r.file != nil {
		st, err := r.file.Stat()
		if err != nil {
			return nil, fmt.Errorf("read log: %w", err)
		}
		own = st
	}
	all := files(r.path)
	at := -1
	for i, name := range all {
		if st, err := os.Stat(name); err == nil && own != nil && os.SameFile(own, st) {
			at = i
		}
	}
	if at == len(all)-1 {
		return nil, nil
	}
	if at < 0 && own == nil {
		at = len(all) - 2
	}
	f, err := os.Open(all[at+1])
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // between rename and open
	}
	return f, err
}
