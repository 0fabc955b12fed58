package shim

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/shim/stdio"
	"github.com/berthd/berth/shim/wire"
)

// A logger does for a container of another shim what ours does itself: its log file,
// and the socket for attach clients. That shim finds FIFOs, which it knows:
//
//	daemon ── start, with the FIFOs in the bundle ─→ logger
//	daemon ←── fd 1: what went wrong, or just its end: it is ready ── logger
//	daemon: the other shim makes the container and opens the FIFOs
//	daemon ── end of fd 0 ─→ logger: from now on the FIFOs end when that shim lets go
//
// The one argument is a query: log is a log: address, dir the bundle with the FIFOs
// stdout, stderr (not for a terminal) and stdin; stdin, if there is one, its attach:
// address.
const (
	actionLogger = "logger"       // launches the next and returns
	actionServes = "logger-serve" // is the logger
)

// launchLogger starts the logger apart from us, so that it outlives the daemon.
func launchLogger(query string) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own program: %w", err)
	}
	_, err = syscall.ForkExec(self, []string{self, actionServes, query}, &syscall.ProcAttr{
		Dir: "/", Env: serveEnviron(""), Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return fmt.Errorf("launch logger: %w", err)
	}
	return nil
}

// serveLogger is the logger. What goes wrong before it is ready goes to fd 1.
func serveLogger(query string) error {
	s, err := openLogger(query)
	if err != nil {
		return errors.Join(err, writeAll(os.Stdout, err.Error()))
	}
	defer s.Close()
	stop := ignoreSignals()
	defer stop()
	if err := os.Stdout.Close(); err != nil {
		return err
	}
	var wg sync.WaitGroup
	wg.Add(1)
	// owner: this function waits for it below. A daemon that dies ends it, too.
	go func() {
		defer wg.Done()
		_, _ = io.Copy(io.Discard, os.Stdin)
		s.Release()
	}()
	wg.Wait()
	s.Finish()
	return nil
}

func writeAll(f *os.File, text string) error {
	_, err := f.WriteString(text)
	return err
}

// ignoreSignals keeps the logger alive: only the end of its input ends it.
func ignoreSignals() (stop func()) {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	return func() { signal.Stop(ch) }
}

func openLogger(query string) (*stdio.Stdio, error) {
	q, err := url.ParseQuery(query)
	dir := q.Get("dir")
	if err != nil || !filepath.IsAbs(dir) || !strings.HasPrefix(q.Get("log"), "log:") {
		return nil, errs.New(errs.InvalidArgument, "logger: %.200q is not understood", query)
	}
	debug.SetGCPercent(gcPercent)
	runtime.GOMAXPROCS(1)
	c := stdio.Config{
		Stdio:     wire.Stdio{Stdin: q.Get("stdin"), Stdout: q.Get("log"), Stderr: q.Get("log")},
		Namespace: q.Get("namespace"), ID: q.Get("id"), Bundle: dir, AttachAt: attachSocket,
		Log: logTo(filepath.Join(dir, "log"), q.Get("namespace"), q.Get("id")),
	}
	fifos := [3]string{"", filepath.Join(dir, "stdout"), filepath.Join(dir, "stderr")}
	if c.Stdin != "" {
		fifos[0] = filepath.Join(dir, "stdin")
	}
	if q.Get("tty") == "1" {
		fifos[2] = ""
	}
	return stdio.OpenLogger(c, fifos)
}
