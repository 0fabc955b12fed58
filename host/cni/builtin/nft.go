package builtin

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// nft is a netlink socket to nf_tables in the network namespace of the thread that
// opened it. The library for that knows the compat attribute of a few matches only,
// and iptables' rules with ports in them need it of others too.
type nft struct {
	mu  sync.Mutex
	fd  int
	seq uint32
	buf []byte
}

// sockets are kept open: closing one waits until all that was deleted before is
// gone for good, which takes the kernel many milliseconds.
type sockets struct {
	mu   sync.Mutex
	open map[uint64]*nft // by network namespace
}

// hold returns the socket of the calling thread's network namespace, which is the
// caller's until the returned function is called.
func (s *sockets) hold() (*nft, func(), error) {
	ns, err := here()
	if err != nil {
		return nil, nil, err
	}
	n, err := s.of(ns)
	if err != nil {
		return nil, nil, err
	}
	n.mu.Lock()
	return n, n.mu.Unlock, nil
}

func (s *sockets) of(ns uint64) (*nft, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.open[ns]; n != nil {
		return n, nil
	}
	n, err := openNFT()
	if err != nil {
		return nil, err
	}
	if s.open == nil {
		s.open = map[uint64]*nft{}
	}
	s.open[ns] = n
	return n, nil
}

func (s *sockets) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.open {
		n.mu.Lock()
		_ = unix.Close(n.fd) // nothing is buffered
		n.mu.Unlock()
	}
	s.open = nil
}

func openNFT() (*nft, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open nf_tables: %w", err)
	}
	limit := unix.NsecToTimeval(int64(10 * time.Second))
	err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	}
	if err != nil {
		_ = unix.Close(fd) // never used
		return nil, fmt.Errorf("open nf_tables: %w", err)
	}
	return &nft{fd: fd}, nil
}

// attr encodes one netlink attribute.
func attr(typ int, data ...[]byte) []byte {
	size := unix.SizeofNlAttr
	for _, d := range data {
		size += len(d)
	}
	b := make([]byte, unix.SizeofNlAttr, (size+3)&^3)
	binary.NativeEndian.PutUint16(b, uint16(size))
	binary.NativeEndian.PutUint16(b[2:], uint16(typ))
	for _, d := range data {
		b = append(b, d...)
	}
	return b[:cap(b)]
}

// nest is an attribute that holds others.
func nest(typ int, parts ...[]byte) []byte { return attr(typ|unix.NLA_F_NESTED, parts...) }

func text(typ int, s string) []byte { return attr(typ, append([]byte(s), 0)) }

func be32(typ int, v uint32) []byte { return attr(typ, binary.BigEndian.AppendUint32(nil, v)) }

// message is one request of a batch, and what to call it in an error.
type message struct {
	what   string
	typ    int
	flags  int
	family uint8
	body   []byte
}

// encode appends a message with its two headers (nlmsghdr, nfgenmsg).
func (n *nft) encode(b []byte, m message, resource uint16) []byte {
	n.seq++
	size := unix.SizeofNlMsghdr + 4 + len(m.body)
	b = binary.NativeEndian.AppendUint32(b, uint32(size))
	b = binary.NativeEndian.AppendUint16(b, uint16(m.typ))
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.NLM_F_REQUEST|m.flags))
	b = binary.NativeEndian.AppendUint32(b, n.seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, m.family, unix.NFNETLINK_V0)
	b = binary.BigEndian.AppendUint16(b, resource)
	return append(b, m.body...)
}

const nfTables = unix.NFNL_SUBSYS_NFTABLES << 8

// commit does all messages or none. It is one transaction of the kernel.
func (n *nft) commit(all []message) error {
	if len(all) == 0 {
		return nil
	}
	b := n.encode(nil, message{typ: unix.NFNL_MSG_BATCH_BEGIN}, unix.NFNL_SUBSYS_NFTABLES)
	first := n.seq
	for _, m := range all {
		m.typ |= nfTables
		m.flags |= unix.NLM_F_ACK
		b = n.encode(b, m, 0)
	}
	b = n.encode(b, message{typ: unix.NFNL_MSG_BATCH_END}, unix.NFNL_SUBSYS_NFTABLES)
	if err := unix.Sendto(n.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("change rules: %w", err)
	}
	var fail []error
	for left := len(all); left > 0; {
		err := n.receive(func(h unix.NlMsghdr, body []byte) error {
			if h.Type != unix.NLMSG_ERROR || len(body) < 4 || int32(h.Seq-first) < 0 {
				return nil // also what an earlier call did not wait for
			}
			left--
			code := unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
			i := int(h.Seq) - int(first) - 1
			switch {
			case i < 0: // all of it was refused
				left = 0
				fail = append(fail, fmt.Errorf("change rules: %w", code))
			case code != 0 && i < len(all):
				fail = append(fail, fmt.Errorf("%s: %w", all[i].what, code))
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("change rules: %w", err)
		}
	}
	return errors.Join(fail...)
}

// receive reads one datagram and hands over its messages.
func (n *nft) receive(f func(unix.NlMsghdr, []byte) error) error {
	if n.buf == nil {
		n.buf = make([]byte, 1<<16)
	}
	got, _, err := unix.Recvfrom(n.fd, n.buf, 0)
	for errors.Is(err, unix.EINTR) {
		got, _, err = unix.Recvfrom(n.fd, n.buf, 0)
	}
	if err != nil {
		return err
	}
	for b := n.buf[:got]; len(b) >= unix.SizeofNlMsghdr; {
		h := unix.NlMsghdr{
			Len: binary.NativeEndian.Uint32(b), Type: binary.NativeEndian.Uint16(b[4:]), Flags: binary.NativeEndian.Uint16(b[6:]), Seq: binary.NativeEndian.Uint32(b[8:]),
		}
		if h.Len < unix.SizeofNlMsghdr || int(h.Len) > len(b) {
			return errors.New("netlink: a message is cut off")
		}
		if err := f(h, b[unix.SizeofNlMsghdr:h.Len]); err != nil {
			return err
		}
		b = b[min(len(b), int(h.Len+3)&^3):]
	}
	return nil
}

// get asks for one thing, or with a dump for all. Answers are bodies without header.
func (n *nft) get(m message, dump bool) (out [][]byte, err error) {
	m.typ |= nfTables
	m.flags = unix.NLM_F_ACK
	if dump {
		m.flags = unix.NLM_F_DUMP
	}
	for range 10 { // until no change interferes
		out = nil
		if err := unix.Sendto(n.fd, n.encode(nil, m, 0), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return nil, err
		}
		again := false
		for done := false; !done; {
			err := n.receive(func(h unix.NlMsghdr, body []byte) error {
				again = again || h.Flags&unix.NLM_F_DUMP_INTR != 0
				if h.Seq != n.seq {
					return nil
				}
				if h.Type == unix.NLMSG_ERROR || h.Type == unix.NLMSG_DONE {
					done = true
					if len(body) >= 4 {
						if code := -int32(binary.NativeEndian.Uint32(body)); code != 0 {
							return unix.Errno(code)
						}
					}
					return nil
				}
				if len(body) > 4 {
					out = append(out, append([]byte(nil), body[4:]...))
				}
				return nil
			})
			if err != nil {
				return nil, err
			}
		}
		if !again {
			return out, nil
		}
	}
	return nil, unix.EINTR
}

// attrs splits a body into its attributes.
func attrs(b []byte) map[int][]byte {
	out := map[int][]byte{}
	for len(b) >= unix.SizeofNlAttr {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofNlAttr || size > len(b) {
			break
		}
		out[int(binary.NativeEndian.Uint16(b[2:]))&^unix.NLA_F_NESTED] = b[unix.SizeofNlAttr:size]
		b = b[min(len(b), (size+3)&^3):]
	}
	return out
}

// elements are the bodies of a list's elements, in order.
func elements(b []byte) [][]byte {
	var out [][]byte
	for len(b) >= unix.SizeofNlAttr {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofNlAttr || size > len(b) {
			break
		}
		out = append(out, b[unix.SizeofNlAttr:size])
		b = b[min(len(b), (size+3)&^3):]
	}
	return out
}
