package builtin

import (
	"errors"
	"fmt"
	"net"
	"unsafe"

	"golang.org/x/sys/unix"
)

// device asks about an interface by name, in the network namespace of the thread.
// These calls of netdevice(7) do not take the kernel's one lock for changes of links,
// as netlink's do: when many pods start at once, each would wait for all.
type device struct{ socket int }

func openDevice() (device, error) {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return device{}, fmt.Errorf("open a socket to ask about interfaces: %w", err)
	}
	return device{s}, nil
}

func (d device) close() { _ = unix.Close(d.socket) } // nothing is sent on it

// ifreq is struct ifreq: the name and a union of 24 bytes.
type ifreq struct {
	name [unix.IFNAMSIZ]byte
	data [24]byte
}

func (d device) ask(what uint, name string) (ifreq, error) {
	var r ifreq
	if len(name) >= len(r.name) {
		return r, unix.EINVAL
	}
	copy(r.name[:], name)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(d.socket), uintptr(what), uintptr(unsafe.Pointer(&r))); e != 0 {
		return r, e
	}
	return r, nil
}

// index is an interface's number; 0 if there is none of that name.
func (d device) index(name string) (int, error) {
	r, err := d.ask(unix.SIOCGIFINDEX, name)
	if errors.Is(err, unix.ENODEV) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("look up %s: %w", name, err)
	}
	return int(*(*int32)(unsafe.Pointer(&r.data))), nil
}

// flags are IFF_*: among them UP, PROMISC, and RUNNING for one that carries traffic.
func (d device) flags(name string) (uint16, error) {
	r, err := d.ask(unix.SIOCGIFFLAGS, name)
	if err != nil {
		return 0, fmt.Errorf("read flags of %s: %w", name, err)
	}
	return *(*uint16)(unsafe.Pointer(&r.data)), nil
}

// mac is an interface's hardware address: in the union a struct sockaddr.
func (d device) mac(name string) (string, error) {
	r, err := d.ask(unix.SIOCGIFHWADDR, name)
	if err != nil {
		return "", fmt.Errorf("read the address of %s: %w", name, err)
	}
	return net.HardwareAddr(r.data[2:8]).String(), nil
}
