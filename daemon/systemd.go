package daemon

import (
	"context"
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/store"
)

// systemd is who started us, if it was so.
type systemd struct {
	socket   string        // "": nobody listens
	watchdog time.Duration // 0: not asked for
}

// meetSystemd reads what systemd left in our environment and takes it out there:
// runtimes that inherit it would speak for us, or wait for containers to speak.
func meetSystemd() (s systemd) {
	s.socket = os.Getenv("NOTIFY_SOCKET")
	if s.socket != "" && s.socket[0] == '@' { // the abstract namespace
		s.socket = "\x00" + s.socket[1:]
	}
	usec, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
	if pid := os.Getenv("WATCHDOG_PID"); err == nil && usec > 0 && (pid == "" || pid == strconv.Itoa(os.Getpid())) {
		s.watchdog = time.Duration(usec) * time.Microsecond
	}
	for _, v := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
		_ = os.Unsetenv(v) // fails for names that are none
	}
	return s
}

// tell says how far the daemon is (sd_notify(3)).
func (s systemd) tell(state string) {
	if s.socket == "" {
		return
	}
	if c, err := net.Dial("unixgram", s.socket); err == nil {
		_, _ = c.Write([]byte(state)) // nobody to tell if systemd does not listen
		_ = c.Close()
	}
}

// monotonic is the time of a reload as systemd wants to know it (sd_notify(3)).
func monotonic() string {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return ""
	}
	return "MONOTONIC_USEC=" + strconv.FormatInt(t.Nano()/1000, 10)
}

// watchdog tells systemd at half of the time it allows that we are alive, if its unit
// asks for that (sd_watchdog_enabled(3)), until ctx ends. Alive means that the store
// answers: a daemon that hangs there is worth nothing, and its restart costs no
// container anything.
func (p *parts) watchdog(ctx context.Context) error {
	limit := p.systemd.watchdog
	if limit == 0 {
		return nil
	}
	tick := time.NewTicker(limit / 2)
	defer tick.Stop()
	for {
		if err := p.healthy(ctx, limit/2); err == nil {
			p.systemd.tell("WATCHDOG=1")
		} else if ctx.Err() == nil {
			p.log.Error("the watchdog is not told that all is well", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// healthy asks whether the store answers within a limit.
func (p *parts) healthy(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return p.store.In(store.Scope{}).View(ctx, func(tx *store.Tx) error { _, err := tx.Namespaces(); return err })
}
