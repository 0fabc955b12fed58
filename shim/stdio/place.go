package stdio

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/shim/crilog"
)

// place is a parsed stdin, stdout or stderr of a request.
//
//	""                      /dev/null
//	/path, fifo:///path     FIFO; a plain path that is no FIFO is a file to append to
//	file:///path            file to append to, made if missing
//	binary:///path?k=v      a logger program with the arguments k v
//	binary-v2:///path?k=v   the same, and it must say that it is ready
//	log:///path?max-line=N&max-size=N&max-files=N   CRI log file, written by us;
//	                        without a path only attach clients see the output
//	attach:?once=1          stdin from attach clients, where stdout is log:
//	pass:///path            open files that the daemon hands over at this socket
type place struct {
	text   string
	scheme string
	path   string
	query  string
}

func parsePlace(text string) (place, error) {
	p := place{text: text}
	if text == "" {
		return p, nil
	}
	if strings.HasPrefix(text, "/") {
		p.scheme, p.path = "fifo", text
		return p, nil
	}
	u, err := url.Parse(text)
	if err != nil {
		return p, errs.New(errs.InvalidArgument, "read stdio address: %v", err)
	}
	p.scheme, p.path, p.query = u.Scheme, u.Path, u.RawQuery
	switch p.scheme {
	case "attach":
		return p, nil
	case "log":
		if p.path == "" && u.Opaque == "" && u.Host == "" {
			return p, nil // no file: only attach clients see the output
		}
	}
	switch p.scheme {
	case "fifo", "file", "binary", "binary-v2", "log", "pass":
		if !filepath.IsAbs(p.path) {
			return p, errs.New(errs.InvalidArgument, "stdio address %q has no absolute path", text)
		}
		return p, nil
	}
	return p, errs.New(errs.InvalidArgument, "stdio address %q: scheme %q is not known", text, p.scheme)
}

// arguments turns a query into the arguments of a logger, in the order given: a
// key, then its first value.
func (p place) arguments() ([]string, error) {
	var args []string
	seen := map[string]bool{}
	for part := range strings.SplitSeq(p.query, "&") {
		if part == "" {
			continue
		}
		k, v, _ := strings.Cut(part, "=")
		k, err := url.QueryUnescape(k)
		if err == nil {
			v, err = url.QueryUnescape(v)
		}
		if err != nil {
			return nil, errs.New(errs.InvalidArgument, "stdio address %q: %v", p.text, err)
		}
		if !seen[k] {
			args = append(args, k, v)
		}
		seen[k] = true
	}
	return args, nil
}

// logConfig reads the query of a log address. Sizes may end in k, m or g.
func (p place) logConfig() (crilog.Config, error) {
	c := crilog.Config{Path: p.path}
	q, err := url.ParseQuery(p.query)
	for key, values := range q {
		var n int64
		if err == nil {
			n, err = parseSize(values[0])
		}
		switch key {
		case "max-line":
			c.MaxLine = int(n)
		case "max-size":
			c.MaxSize = n
		case "max-files":
			c.MaxFiles = int(n)
		default:
			err = fmt.Errorf("option %q is not known", key)
		}
	}
	if err != nil {
		return c, errs.New(errs.InvalidArgument, "log address %q: %v", p.text, err)
	}
	return c, nil
}

func parseSize(s string) (int64, error) {
	shift := 0
	if s != "" {
		if i := strings.IndexByte("kmg", s[len(s)-1]|0x20); i >= 0 {
			shift, s = 10*(i+1), s[:len(s)-1]
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > 1<<40>>shift {
		return 0, fmt.Errorf("%q is no size", s)
	}
	return n << shift, nil
}

// readerLimit is how long a FIFO's reader may be on its way.
const readerLimit = 5 * time.Second

// openOutput opens a FIFO or file to write to.
func (p place) openOutput(ctx context.Context) (*os.File, error) {
	if p.scheme == "file" {
		if err := os.MkdirAll(filepath.Dir(p.path), 0o755); err != nil {
			return nil, fmt.Errorf("make directory of output file: %w", err)
		}
		return os.OpenFile(p.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	}
	st, err := os.Stat(p.path)
	if err != nil {
		return nil, fmt.Errorf("open output: %w", err)
	}
	if st.Mode()&os.ModeNamedPipe == 0 {
		return os.OpenFile(p.path, os.O_WRONLY|os.O_APPEND, 0)
	}
	return openForReader(ctx, p.path)
}

// openForReader opens both ends of a FIFO, so that a client that leaves breaks
// nothing. Before that it waits for the client to open its end, up to a limit:
// clients do that while they ask for the process, and one that is slow would come
// to a FIFO that has been closed, with all the output of a short process in it.
func openForReader(ctx context.Context, path string) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, readerLimit)
	defer cancel()
	for wait := time.Millisecond; ; wait = min(2*wait, 20*time.Millisecond) {
		// Without a reader this fails with ENXIO (fifo(7)).
		fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err == nil {
			f, err := openFIFO(path, unix.O_RDWR)
			_ = unix.Close(fd)
			return f, err
		}
		if err != unix.ENXIO {
			return nil, fmt.Errorf("open FIFO %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			return openFIFO(path, unix.O_RDWR)
		case <-time.After(wait):
		}
	}
}

func openFIFO(path string, flags int) (*os.File, error) {
	fd, err := unix.Open(path, flags|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open FIFO %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}
