package shim

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/host/child"
	"github.com/berthd/berth/host/sock"
)

// infoLimit bounds what a runtime may take to tell its features.
const infoLimit = 10 * time.Second

func withTimeout(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), d)
}

// serve is the shim itself. Whoever launches it hands over a listening socket.
func (f *flags) serve() error {
	l, err := sock.Inherit(f.socketFD)
	if err != nil {
		return err
	}
	debug.SetGCPercent(gcPercent)
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(1)
	}
	path := l.Path()
	if f.bundle == "" {
		if f.bundle, err = os.Getwd(); err != nil {
			return err
		}
	}
	if err := leave(f.bundle); err != nil {
		return err
	}
	if err := child.BecomeSubreaper(); err != nil {
		return err
	}
	if os.Getenv("SCHED_CORE") != "" {
		// A cookie of our own process group, which all containers inherit (prctl(2)).
		if err := unix.Prctl(unix.PR_SCHED_CORE, unix.PR_SCHED_CORE_CREATE, 0, 2, 0); err != nil {
			return fmt.Errorf("create core scheduling cookie: %w", err)
		}
	}
	log := logTo(filepath.Join(f.bundle, "log"), f.namespace, f.id)
	stopSignals := takeSignals(log)
	defer stopSignals()
	reaper, stopReaper := runReaper()
	defer stopReaper()
	s := New(Config{
		Namespace: f.namespace, Version: Version, Bundle: f.bundle, EventAddress: f.eventAddress,
		Runtime: func(s settings, bundle string) Runtime { return newRuntime(s, bundle, f.namespace, reaper) },
		Mounter: kernelMounts{}, Reaper: reaper, Log: log,
	})
	err = s.Serve(l, func() {
		if path != "" {
			_ = os.Remove(path) // before the close, so that no newer socket is meant
		}
		l.Close()
	})
	if err != nil {
		log("ends: " + err.Error())
	}
	return err
}

// leave cuts the ties to whoever started us. What the program itself has to say,
// when it dies of a fault, goes into a file of the bundle.
func leave(bundle string) error {
	_, _ = unix.Setsid() // fails if we lead a session or group already
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", os.DevNull, err)
	}
	last := null
	if fd, err := unix.Open(filepath.Join(bundle, "shim.log"), unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT|unix.O_CLOEXEC, 0o600); err == nil {
		last = fd
	}
	for fd, to := range []int{null, null, last} {
		if err := unix.Dup2(to, fd); err != nil {
			return fmt.Errorf("cut standard streams: %w", err)
		}
	}
	_ = unix.Close(null)
	if last != null {
		_ = unix.Close(last)
	}
	return os.Chdir("/")
}

// logTo returns a function that writes a line to the daemon's log FIFO. Nothing is
// held open for it; if nobody reads there, the line goes to our own stderr.
func logTo(fifo, namespace, id string) func(string) {
	var mu sync.Mutex
	return func(message string) {
		mu.Lock()
		defer mu.Unlock()
		line := fmt.Sprintf("time=%s level=warn msg=%s namespace=%s group=%s pid=%d\n",
			time.Now().UTC().Format(time.RFC3339Nano), strconv.Quote(message), namespace, id, os.Getpid())
		fd, err := unix.Open(fifo, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err != nil {
			_, _ = os.Stderr.WriteString(line)
			return
		}
		defer func() { _ = unix.Close(fd) }()
		if _, err := unix.Write(fd, []byte(line)); err != nil {
			_, _ = os.Stderr.WriteString(line)
		}
	}
}

// takeSignals keeps the shim alive: an end is asked for through its socket only.
// SIGUSR1 has it write down what its goroutines do. The signals are taken, not
// ignored: what is ignored stays so in the programs that we start.
func takeSignals(log func(string)) (stop func()) {
	ch := make(chan os.Signal, 4)
	signal.Notify(ch, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE, syscall.SIGUSR1)
	var wg sync.WaitGroup
	wg.Add(1)
	// owner: stop waits for it
	go func() {
		defer wg.Done()
		for sig := range ch {
			if sig == syscall.SIGUSR1 {
				buf := make([]byte, 256<<10)
				log(string(buf[:runtime.Stack(buf, true)]))
			}
		}
	}()
	return func() {
		signal.Stop(ch)
		close(ch)
		wg.Wait()
	}
}

// runReaper starts a reaper.
func runReaper() (*child.Reaper, func()) {
	r := child.New()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Add(1)
	// owner: the returned function waits for it
	go func() { defer wg.Done(); r.Run(stop) }()
	return r, func() { close(stop); wg.Wait() }
}
