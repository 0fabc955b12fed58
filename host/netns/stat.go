package netns

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Counter is what an interface has carried since it was made.
type Counter struct {
	Name                                    string
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// Counters reads the counters of all interfaces but the loopback of the network
// namespace at path, in the kernel's order. No program is started.
func Counters(path string) ([]Counter, error) {
	var data []byte
	err := In(path, func() (err error) {
		data, err = os.ReadFile("/proc/thread-self/net/dev")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read interface counters: %w", err)
	}
	return counters(data)
}

// CountersOf is Counters for the network namespace that a process is in: it costs no
// thread of its own.
func CountersOf(pid int) ([]Counter, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", pid))
	if err != nil {
		return nil, fmt.Errorf("read interface counters: %w", err)
	}
	return counters(data)
}

// counters reads /proc/net/dev (proc_pid_net(5)): two lines of titles, then
//
//	eth0: RXBYTES PACKETS ERRS DROP fifo frame compressed multicast TXBYTES PACKETS ERRS DROP …
func counters(data []byte) ([]Counter, error) {
	var out []Counter
	for line := range bytes.Lines(data) {
		name, rest, ok := strings.Cut(string(line), ":")
		if !ok {
			continue // titles
		}
		if name = strings.TrimSpace(name); name == "lo" {
			continue
		}
		f := strings.Fields(rest)
		if len(f) < 12 {
			return nil, fmt.Errorf("interface counters: %d columns in %q", len(f), line)
		}
		c := Counter{Name: name}
		for col, to := range map[int]*uint64{
			0: &c.RxBytes, 1: &c.RxPackets, 2: &c.RxErrors, 3: &c.RxDropped,
			8: &c.TxBytes, 9: &c.TxPackets, 10: &c.TxErrors, 11: &c.TxDropped,
		} {
			n, err := strconv.ParseUint(f[col], 10, 64)
			if err != nil {
				return nil, fmt.Errorf("interface counters: %w", err)
			}
			*to = n
		}
		out = append(out, c)
	}
	return out, nil
}
