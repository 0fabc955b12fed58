package netns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
)

// onThread runs f on a thread of its own that is thrown away afterwards, whatever
// namespaces f has put it in.
func onThread(f func() error) error {
	done := make(chan error, 1)
	// owner: onThread waits for done.
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			// The process's first thread never ends, and /proc/self is that thread:
			// while it is kept here, f gets another.
			defer runtime.UnlockOSThread()
			done <- onThread(f)
			return
		}
		done <- f() // still locked: the runtime ends the thread
	}()
	return <-done
}

// hostNet is the network namespace that this process was started in.
var hostNet = sync.OnceValues(func() (*os.File, error) { return os.Open("/proc/self/ns/net") })

// In runs f on a thread that is in the network namespace at path. f must not start
// goroutines that need to be there; sockets it opens stay there.
func In(path string, f func() error) error {
	host, err := hostNet()
	if err != nil {
		return fmt.Errorf("open the host's network namespace: %w", err)
	}
	ns, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer ns.Close()
	done := make(chan error, 1)
	// owner: In waits for done.
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("enter network namespace %s: %w", path, err)
			return
		}
		err := f()
		if unix.Setns(int(host.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		} // else the runtime ends the thread
		done <- err
	}()
	return <-done
}

// Dial connects to an address, which must be a number, from inside the network
// namespace at path.
func Dial(ctx context.Context, path, network, address string) (c net.Conn, err error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, errs.New(errs.InvalidArgument, "dial in a network namespace: %w", err)
	}
	err = In(path, func() (err error) {
		// One address and no name: the socket is made on this thread.
		c, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// linkUp brings an interface of the thread's network namespace up (netdevice(7)).
func linkUp(name string) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bring up %s: socket: %w", name, err)
	}
	defer unix.Close(s)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_LOOPBACK)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("bring up %s: %w", name, err)
	}
	return nil
}
