package netns

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Interface is what an interface has carried since it was made.
type Interface struct {
	Name   string
	Rx, Tx Counters
}

// Counters are those of one direction.
type Counters struct{ Bytes, Packets, Errors, Dropped uint64 }

// Interfaces reads the counters of all interfaces of the network namespace at ns,
// in the kernel's order.
func Interfaces(ns string) ([]Interface, error) {
	var data []byte
	err := In(ns, func() (err error) {
		data, err = os.ReadFile("/proc/thread-self/net/dev")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read interface counters: %w", err)
	}
	return interfaces(data)
}

// interfaces reads /proc/net/dev (proc_pid_net(5)): two lines of titles, then
//
//	eth0: RXBYTES PACKETS ERRS DROP fifo frame compressed multicast TXBYTES PACKETS ERRS DROP …
func interfaces(data []byte) ([]Interface, error) {
	var out []Interface
	for line := range bytes.Lines(data) {
		name, rest, ok := strings.Cut(string(line), ":")
		if !ok {
			continue // titles
		}
		f := strings.Fields(rest)
		if len(f) < 12 {
			return nil, fmt.Errorf("interface counters: %d columns in %q", len(f), line)
		}
		i := Interface{Name: strings.TrimSpace(name)}
		for col, to := range map[int]*uint64{
			0: &i.Rx.Bytes, 1: &i.Rx.Packets, 2: &i.Rx.Errors, 3: &i.Rx.Dropped,
			8: &i.Tx.Bytes, 9: &i.Tx.Packets, 10: &i.Tx.Errors, 11: &i.Tx.Dropped,
		} {
			n, err := strconv.ParseUint(f[col], 10, 64)
			if err != nil {
				return nil, fmt.Errorf("interface counters: %w", err)
			}
			*to = n
		}
		out = append(out, i)
	}
	return out, nil
}
