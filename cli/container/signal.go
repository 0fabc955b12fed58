package container

import (
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
)

// maxSignal is the highest signal of Linux (signal(7): SIGRTMAX).
const maxSignal = 64

// ParseSignal reads a number, or a name with or without SIG.
func ParseSignal(s string) (syscall.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil {
		if n < 1 || n > maxSignal {
			return 0, errs.New(errs.InvalidArgument, "signal %d: there are 1 to %d", n, maxSignal)
		}
		return syscall.Signal(n), nil
	}
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if n := unix.SignalNum(name); n != 0 {
		return n, nil
	}
	for prefix, base := range map[string]int{"SIGRTMIN": 34, "SIGRTMAX": 64} {
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		if rest == "" {
			return syscall.Signal(base), nil
		}
		if n, err := strconv.Atoi(rest); err == nil && base+n >= 34 && base+n <= maxSignal {
			return syscall.Signal(base + n), nil
		}
	}
	return 0, errs.New(errs.InvalidArgument, "signal %q is not known: use a name as TERM, or a number (signal(7))", s)
}
