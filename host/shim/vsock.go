package shim

import (
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
)

// dialVsock connects to "CID:PORT" of a virtual machine (vsock(7)).
func dialVsock(hostport string) (net.Conn, error) {
	cidText, portText, ok := strings.Cut(hostport, ":")
	cid, err1 := strconv.ParseUint(cidText, 10, 32)
	port, err2 := strconv.ParseUint(portText, 10, 32)
	if !ok || err1 != nil || err2 != nil {
		return nil, errs.New(errs.InvalidArgument, "vsock address %q is not CID:PORT", hostport)
	}
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, errs.New(errs.Unavailable, "vsock socket: %w", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrVM{CID: uint32(cid), Port: uint32(port)}); err != nil {
		_ = unix.Close(fd)
		return nil, errs.New(errs.Unavailable, "connect to vsock %s: %w", hostport, err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return vsockConn{os.NewFile(uintptr(fd), "vsock:"+hostport), vsockAddr(hostport)}, nil
}

// vsockConn is a connection of a family that package net does not know; the file
// uses the runtime's poller because the socket does not block.
type vsockConn struct {
	*os.File
	addr vsockAddr
}

func (c vsockConn) LocalAddr() net.Addr  { return vsockAddr("") }
func (c vsockConn) RemoteAddr() net.Addr { return c.addr }

type vsockAddr string

func (vsockAddr) Network() string  { return "vsock" }
func (a vsockAddr) String() string { return string(a) }
