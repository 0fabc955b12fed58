// Package crilog writes container output as the log files that a kubelet reads. It
// owns one open file for each log and no goroutine. It never fails towards the
// container: what cannot be written is dropped, by whole lines, and counted.
//
// A line, where tag is P (partial: more of the line follows, or the stream ended
// without a newline) or F (full):
//
//	2026-08-22T10:00:00.123456789Z stdout F content
package crilog

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultMaxLine is where the kubelet's readers expect a line to be cut, in bytes.
const DefaultMaxLine = 16384

// Config says where and how much.
type Config struct {
	Path     string
	MaxLine  int   // bytes of content in one line of the file; 0 is DefaultMaxLine
	MaxSize  int64 // bytes of a file; 0 is no limit and no rotation
	MaxFiles int   // with the current one; 0 is 3
}

// Log is one file that the streams of a container share.
type Log struct {
	config Config
	// Changed, if set, is told when lines begin to be lost (err), and when writing
	// works again (nil, with the number lost). It is called with the log locked.
	Changed func(err error, lines uint64)

	mu      sync.Mutex
	file    *os.File // nil after a failure to open, until a retry succeeds
	size    int64
	torn    bool      // the file ends within a line that could not be taken back
	retry   time.Time // when to try again to open
	failing bool
	recent  uint64 // lines lost since writing worked
	lost    uint64 // lines lost at all
	closed  bool
	out     []byte // lines on their way, while a stream writes
}

// Open opens the log to append, making its directory if that is missing.
func Open(c Config) (*Log, error) {
	if c.MaxLine <= 0 {
		c.MaxLine = DefaultMaxLine
	}
	c.MaxLine = min(c.MaxLine, 1<<20)
	if c.MaxFiles <= 0 {
		c.MaxFiles = 3
	}
	l := &Log{config: c}
	if err := os.MkdirAll(filepath.Dir(c.Path), 0o755); err != nil {
		return nil, fmt.Errorf("make log directory: %w", err)
	}
	return l, l.open()
}

// open replaces the file. The path may lie where a container can write, so links
// are not followed and only regular files are taken.
func (l *Log) open() error {
	f, err := os.OpenFile(l.config.Path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o640)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", l.config.Path)
	}
	if err != nil {
		_ = f.Close()
		return fmt.Errorf("open log: %w", err)
	}
	if l.file != nil {
		_ = l.file.Close()
	}
	l.file, l.size, l.torn = f, st.Size(), false
	return nil
}

// Reopen goes on in a new file at the same path, after somebody has renamed the
// old one. No line is lost or torn; on an error writing goes on in the old file.
func (l *Log) Reopen() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return errors.New("reopen log: it is closed")
	}
	if err := os.MkdirAll(filepath.Dir(l.config.Path), 0o755); err != nil {
		return fmt.Errorf("make log directory: %w", err)
	}
	return l.open()
}

// Lost is the number of lines dropped so far.
func (l *Log) Lost() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lost
}

// Close closes the file. Streams may still be written to: that is dropped.
func (l *Log) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if l.file != nil {
		_ = l.file.Close()
		l.file = nil
	}
}

// flush writes whole lines and forgets them.
func (l *Log) flush(lines []byte) {
	if len(lines) == 0 {
		return
	}
	err := l.ready(len(lines))
	written := 0
	if err == nil {
		written, err = l.write(lines)
	}
	if err != nil {
		l.drop(lines[written:], err)
		return
	}
	if l.failing {
		l.failing = false
		if l.Changed != nil {
			l.Changed(nil, l.recent)
		}
		l.recent = 0
	}
}

// ready makes sure that there is a file with room for n bytes.
func (l *Log) ready(n int) error {
	if l.closed {
		return fs.ErrClosed
	}
	if l.file == nil {
		if time.Now().Before(l.retry) {
			return errors.New("the log could not be opened")
		}
		if err := l.open(); err != nil {
			l.retry = time.Now().Add(time.Second)
			return err
		}
	}
	if l.config.MaxSize > 0 && l.size > 0 && l.size+int64(n) > l.config.MaxSize {
		return l.rotate()
	}
	return nil
}

// write appends lines and returns how many bytes of whole lines are in the file. A
// line that a full disk cut off is taken back.
func (l *Log) write(lines []byte) (int, error) {
	if l.torn {
		if _, err := l.file.Write([]byte{'\n'}); err != nil {
			return 0, err
		}
		l.torn = false
		l.size++
	}
	n, err := l.file.Write(lines)
	if err == nil {
		l.size += int64(n)
		return n, nil
	}
	whole := bytes.LastIndexByte(lines[:n], '\n') + 1
	l.size += int64(whole)
	if whole != n {
		if l.file.Truncate(l.size) != nil {
			l.torn = true
			l.size += int64(n - whole)
		}
	}
	return whole, err
}

func (l *Log) drop(lines []byte, err error) {
	n := uint64(bytes.Count(lines, []byte{'\n'}))
	l.lost += n
	l.recent += n
	if !l.failing {
		l.failing = true
		if l.Changed != nil {
			l.Changed(err, 0)
		}
	}
}

// rotate renames path to path.1, path.1 to path.2 and so on, and starts anew.
// When that fails the old file just grows on.
func (l *Log) rotate() error {
	name := func(i int) string { return l.config.Path + "." + strconv.Itoa(i) }
	if l.config.MaxFiles == 1 {
		if err := l.file.Truncate(0); err == nil {
			l.size = 0
		}
		return nil
	}
	for i := l.config.MaxFiles - 1; i > 1; i-- {
		if err := os.Rename(name(i-1), name(i)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	}
	if err := os.Rename(l.config.Path, name(1)); err != nil {
		return nil
	}
	if err := l.open(); err != nil {
		// What we have open is path.1 now; it may not grow for ever.
		_ = l.file.Close()
		l.file, l.retry = nil, time.Now().Add(time.Second)
		return err
	}
	return nil
}
