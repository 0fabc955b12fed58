package podspec

import (
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/base/errs"
)

// The real-time signals as libc counts them (signal(7)): it keeps two for itself.
const rtMin, rtMax = 34, 64

// firstRT and lastRT are the numbers of CRI's enum for those.
const firstRT, lastRT = 35, 65

// signals are CRI's signals by number: their names changed with cri-api 0.37, the
// numbers did not.
var signals = []string{
	1: "ABRT", 2: "ALRM", 3: "BUS", 4: "CHLD", 5: "CHLD", 6: "CONT", 7: "FPE", 8: "HUP", 9: "ILL", 10: "INT", 11: "IO", 12: "ABRT", 13: "KILL",
	14: "PIPE", 15: "IO", 16: "PROF", 17: "PWR", 18: "QUIT", 19: "SEGV", 20: "STKFLT", 21: "STOP", 22: "SYS", 23: "TERM", 24: "TRAP", 25: "TSTP",
	26: "TTIN", 27: "TTOU", 28: "URG", 29: "USR1", 30: "USR2", 31: "VTALRM", 32: "WINCH", 33: "XCPU", 34: "XFSZ",
}

// StopSignal is what ends a container: what its config says, or else its image, or
// else SIGTERM. An image's signal that is none is passed over.
func StopSignal(c *cri.ContainerConfig, image string) (syscall.Signal, error) {
	switch n := int32(c.GetStopSignal()); {
	case n >= firstRT && n <= lastRT:
		// The enum has RTMIN to RTMIN+15, then RTMAX-14 to RTMAX: without a gap, as the
		// signals themselves.
		return syscall.Signal(rtMin + n - firstRT), nil
	case n > 0 && int(n) < len(signals):
		return unix.SignalNum("SIG" + signals[n]), nil
	case n != 0:
		return 0, errs.New(errs.InvalidArgument, "stop_signal %d is not known", n)
	}
	if image == "" {
		return syscall.SIGTERM, nil
	}
	return ParseSignal(image)
}

// ParseSignal reads a signal: a number, SIGTERM, TERM, RTMIN+3.
func ParseSignal(s string) (syscall.Signal, error) {
	bad := errs.New(errs.InvalidArgument, "%q is no signal", s)
	name := strings.ToUpper(strings.TrimSpace(s))
	if n, err := strconv.Atoi(name); err == nil {
		if n < 1 || n > rtMax {
			return 0, bad
		}
		return syscall.Signal(n), nil
	}
	name = strings.TrimPrefix(name, "SIG")
	if n := unix.SignalNum("SIG" + name); n != 0 {
		return n, nil
	}
	for prefix, from := range map[string]int{"RTMIN": rtMin, "RTMAX": rtMax} {
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		off := 0
		if rest != "" {
			var err error
			if off, err = strconv.Atoi(rest); err != nil || rest[0] != '+' && rest[0] != '-' {
				return 0, bad
			}
		}
		if n := from + off; n >= rtMin && n <= rtMax {
			return syscall.Signal(n), nil
		}
	}
	return 0, bad
}
