package builtin

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/host/netns"
)

// side is one side of a link: sockets in the network namespace of the thread that
// opened them.
type side struct {
	*netlink.Handle
	device
}

func openSide() (*side, error) {
	d, err := openDevice()
	if err != nil {
		return nil, err
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		d.close()
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return &side{h, d}, nil
}

func (s *side) close() {
	s.Handle.Close()
	s.device.close()
}

// inPod runs f on a thread in a pod's network namespace.
func inPod(path string, f func(*side) error) error {
	return netns.In(path, func() error {
		s, err := openSide()
		if err != nil {
			return err
		}
		defer s.close()
		return f(s)
	})
}

// numbered is a link of which nothing more is needed than its name and number.
func numbered(name string, index int) netlink.Link {
	return &netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: name, Index: index}}
}

// sysctl sets a kernel variable of the thread's network namespace, if it has another
// value: writing some of them takes long.
func sysctl(value string, name ...string) error {
	path := filepath.Join(append([]string{"/proc/sys/net"}, name...)...)
	have, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if string(have) == value+"\n" {
		return nil
	}
	return os.WriteFile(path, []byte(value), 0)
}

// bridges remembers which interfaces were seen to be bridges, by namespace and name.
type bridges struct{ seen sync.Map }

type bridgeKey struct {
	ns    uint64
	name  string
	index int
}

// get returns the network's bridge, made if need be.
func (b *bridges) get(h *side, conf *bridgeConf) (netlink.Link, error) {
	ns, err := here()
	if err != nil {
		return nil, err
	}
	index, err := h.index(conf.Bridge)
	if err != nil {
		return nil, err
	}
	if _, ok := b.seen.Load(bridgeKey{ns, conf.Bridge, index}); !ok || index == 0 {
		if index, err = h.makeBridge(conf); err != nil {
			return nil, err
		}
		b.seen.Store(bridgeKey{ns, conf.Bridge, index}, true)
	}
	br := numbered(conf.Bridge, index)
	flags, err := h.flags(conf.Bridge)
	if err != nil {
		return nil, err
	}
	if conf.Promisc && flags&unix.IFF_PROMISC == 0 {
		if err := h.SetPromiscOn(br); err != nil {
			return nil, fmt.Errorf("set %s promiscuous: %w", conf.Bridge, err)
		}
	}
	_ = sysctl("0", "ipv6", "conf", conf.Bridge, "accept_ra") // not there without IPv6
	if flags&unix.IFF_UP == 0 {
		if err := h.LinkSetUp(br); err != nil {
			return nil, fmt.Errorf("bring %s up: %w", conf.Bridge, err)
		}
	}
	return br, nil
}

// here is the network namespace of the thread.
func here() (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		return 0, fmt.Errorf("look up the network namespace: %w", err)
	}
	return st.Ino, nil
}

// makeBridge makes the bridge, or makes sure that what has its name is one.
func (s *side) makeBridge(conf *bridgeConf) (int, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = conf.Bridge, conf.MTU
	if err := s.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil && !errors.Is(err, unix.EEXIST) {
		return 0, fmt.Errorf("make bridge %s: %w", conf.Bridge, err)
	}
	l, err := s.LinkByName(conf.Bridge)
	if err != nil {
		return 0, fmt.Errorf("look up %s: %w", conf.Bridge, err)
	}
	if _, ok := l.(*netlink.Bridge); !ok {
		return 0, errs.New(errs.FailedPrecondition, "%q already exists but is not a bridge", conf.Bridge)
	}
	return l.Attrs().Index, nil
}

// joined makes a pair whose host end is in the bridge.
func (s *side) joined(c Call, conf *bridgeConf, br netlink.Link) (netlink.Link, error) {
	mac, err := conf.mac()
	if err != nil {
		return nil, fmt.Errorf("address of the interface: %w", err)
	}
	l, err := s.veth(c, conf.MTU, br.Attrs().Index, mac)
	if err != nil {
		return nil, err
	}
	if conf.Hairpin {
		if err := s.LinkSetHairpin(l, true); err != nil {
			return nil, fmt.Errorf("set hairpin mode of %s: %w", l.Attrs().Name, err)
		}
	}
	return l, nil
}

// veth makes a pair and returns the host's end, which is up: the other end has the
// pod's name for it, in the pod's namespace. One queue each way is all that a veth
// uses; being told so at once, the kernel need not take the others away, for which it
// stops the world.
func (s *side) veth(c Call, mtu, master int, mac net.HardwareAddr) (netlink.Link, error) {
	ns, err := os.Open(c.NetNS)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	defer ns.Close()
	name, index := "", 0
	for range 10 { // until the name is free
		name = randomName()
		err = newVeth(end{name: name, mtu: mtu, master: master, up: true}, end{name: c.IfName, mtu: mtu, queue: 1000, mac: mac, ns: ns})
		if !errors.Is(err, unix.EEXIST) {
			break
		}
		if index, _ = s.index(name); index == 0 {
			return nil, errs.New(errs.AlreadyExists, "interface %s is in the pod already", c.IfName)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("make veth pair: %w", err)
	}
	_ = sysctl("0", "ipv6", "conf", name, "accept_ra") // not there without IPv6
	if index, err = s.index(name); err != nil {
		return nil, err
	}
	return numbered(name, index), nil
}

// end is one end of a new veth pair.
type end struct {
	name   string
	mtu    int // 0: the kernel's
	queue  int // length of the queue; the plugin gives the host's end none, and the pod's the default
	master int
	up     bool
	mac    net.HardwareAddr // nil: a random one
	ns     *os.File         // nil: the thread's namespace
}

// attrs adds an end's attributes (if_link.h): to a message, or to the part of one
// that tells of the peer.
func (e end) attrs(to interface{ AddRtAttr(int, []byte) *nl.RtAttr }) {
	to.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(e.name))
	to.AddRtAttr(unix.IFLA_TXQLEN, nl.Uint32Attr(uint32(e.queue)))
	to.AddRtAttr(unix.IFLA_NUM_TX_QUEUES, nl.Uint32Attr(1))
	to.AddRtAttr(unix.IFLA_NUM_RX_QUEUES, nl.Uint32Attr(1))
	if e.mtu > 0 {
		to.AddRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(e.mtu)))
	}
	if e.mac != nil {
		to.AddRtAttr(unix.IFLA_ADDRESS, e.mac)
	}
	if e.ns != nil {
		to.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(e.ns.Fd())))
	}
}

// linkMessage lets attributes be added to a request as to an attribute.
type linkMessage struct{ *nl.NetlinkRequest }

func (m linkMessage) AddRtAttr(typ int, data []byte) *nl.RtAttr {
	a := nl.NewRtAttr(typ, data)
	m.AddData(a)
	return a
}

// newVeth makes a pair in one message, with the first end's master and state: the
// library takes three, and each waits for the lock of all links.
func newVeth(a, b end) error {
	m := linkMessage{nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)}
	head := nl.NewIfInfomsg(unix.AF_UNSPEC)
	if a.up {
		head.Flags, head.Change = unix.IFF_UP, unix.IFF_UP
	}
	m.AddData(head)
	a.attrs(m)
	if a.master != 0 {
		m.AddRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(a.master)))
	}
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
	b.attrs(peer)
	m.AddData(info)
	_, err := m.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

func randomName() string {
	b := make([]byte, 4)
	_, _ = rand.Read(b)
	return "veth" + hex.EncodeToString(b)
}

// configure sets up the pod's end and returns its hardware address. before and after
// are a plugin's own part, in the pod's namespace; they may be nil.
func configure(c Call, r *types100.Result, before func(*side) error, after func(*side, netlink.Link) error) (mac string, err error) {
	err = inPod(c.NetNS, func(pod *side) error {
		index, err := pod.index(c.IfName)
		if err != nil {
			return err
		}
		if mac, err = pod.mac(c.IfName); err != nil {
			return err
		}
		l := numbered(c.IfName, index)
		if before != nil {
			if err := before(pod); err != nil {
				return err
			}
		}
		if err := addAddresses(pod, l, c.IfName, r); err != nil {
			return err
		}
		if err := pod.LinkSetUp(l); err != nil {
			return fmt.Errorf("bring %s up: %w", c.IfName, err)
		}
		if slices.ContainsFunc(r.IPs, func(ip *types100.IPConfig) bool { return ip.Address.IP.To4() == nil }) {
			if err := settle(pod, l); err != nil {
				return err
			}
		}
		if err := addRoutes(pod, l, r); err != nil || after == nil {
			return err
		}
		return after(pod, l)
	})
	return mac, err
}

func addAddresses(pod *side, l netlink.Link, ifName string, r *types100.Result) error {
	v6 := false
	for _, ip := range r.IPs {
		if !v6 && ip.Address.IP.To4() == nil {
			v6 = true
			for _, n := range []string{"lo", ifName} {
				if err := sysctl("0", "ipv6", "conf", n, "disable_ipv6"); err != nil && !errors.Is(err, os.ErrNotExist) {
					return fmt.Errorf("enable IPv6 on %s: %w", n, err)
				}
			}
			if err := sysctl("1", "ipv6", "conf", ifName, "keep_addr_on_down"); err != nil {
				return fmt.Errorf("keep addresses of %s when it is down: %w", ifName, err)
			}
		}
		if err := pod.AddrAdd(l, &netlink.Addr{IPNet: &ip.Address}); err != nil {
			return fmt.Errorf("add address %s to %s: %w", ip.Address.String(), ifName, err)
		}
	}
	return nil
}

// settleTime bounds the wait for IPv6 addresses to be usable: with duplicate address
// detection that takes a second or two, without it no time.
const settleTime = 5 * time.Second

func settle(pod *side, l netlink.Link) error {
	for end := time.Now().Add(settleTime); ; time.Sleep(10 * time.Millisecond) {
		all, err := pod.AddrList(l, netlink.FAMILY_V6)
		if err != nil {
			return fmt.Errorf("list addresses of %s: %w", l.Attrs().Name, err)
		}
		waiting := false
		for _, a := range all {
			if a.Flags&unix.IFA_F_DADFAILED != 0 {
				return errs.New(errs.FailedPrecondition, "address %s of %s is in use by another host on the network", a.IPNet, l.Attrs().Name)
			}
			waiting = waiting || a.Flags&unix.IFA_F_TENTATIVE != 0 && a.IP.IsGlobalUnicast()
		}
		if !waiting {
			return nil
		}
		if time.Now().After(end) {
			return errs.New(errs.Unavailable, "IPv6 addresses of %s are not usable after %s", l.Attrs().Name, settleTime)
		}
	}
}

func addRoutes(pod *side, l netlink.Link, r *types100.Result) error {
	gateway := map[bool]net.IP{}
	for _, ip := range r.IPs {
		if v4 := ip.Gateway.To4() != nil; ip.Gateway != nil && gateway[v4] == nil {
			gateway[v4] = ip.Gateway
		}
	}
	for _, t := range r.Routes {
		route := netlink.Route{Dst: &t.Dst, LinkIndex: l.Attrs().Index, Gw: t.GW, Priority: t.Priority}
		if route.Gw == nil {
			route.Gw = gateway[t.Dst.IP.To4() != nil]
		}
		if t.Table != nil {
			route.Table = *t.Table
		}
		if t.Scope != nil {
			route.Scope = netlink.Scope(*t.Scope)
		}
		if err := pod.RouteAddEcmp(&route); err != nil {
			return fmt.Errorf("add route to %s via %s: %w", t.Dst.String(), route.Gw, err)
		}
	}
	return nil
}

// gateways gives the bridge its addresses and makes the host forward.
func (s *side) gateways(br netlink.Link, all []net.IPNet, force bool) error {
	for _, gw := range all {
		if err := s.gateway(br, gw, force); err != nil {
			return err
		}
		if err := forward(gw.IP); err != nil {
			return err
		}
	}
	return nil
}

// forward makes the host forward packets of the address's family.
func forward(ip net.IP) error {
	name := []string{"ipv4", "ip_forward"}
	if ip.To4() == nil {
		name = []string{"ipv6", "conf", "all", "forwarding"}
	}
	if err := sysctl("1", name...); err != nil {
		return fmt.Errorf("enable forwarding: %w", err)
	}
	return nil
}

func (s *side) gateway(br netlink.Link, gw net.IPNet, force bool) error {
	family := netlink.FAMILY_V6
	if gw.IP.To4() != nil {
		family = netlink.FAMILY_V4
	}
	have, err := s.AddrList(br, family)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", br.Attrs().Name, err)
	}
	for _, a := range have {
		if a.IPNet.String() == gw.String() {
			return nil
		}
		// One IPv4 address, and several of IPv6 if their subnets are apart.
		if family == netlink.FAMILY_V6 && !a.IPNet.Contains(gw.IP) && !gw.Contains(a.IP) {
			continue
		}
		if !force {
			return errs.New(errs.FailedPrecondition, "%q already has an IP address different from %s", br.Attrs().Name, gw.String())
		}
		if err := s.AddrDel(br, &netlink.Addr{IPNet: a.IPNet}); err != nil {
			return fmt.Errorf("remove address %s from %s: %w", a.IPNet, br.Attrs().Name, err)
		}
	}
	if err := s.AddrAdd(br, &netlink.Addr{IPNet: &gw}); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add address %s to %s: %w", gw.String(), br.Attrs().Name, err)
	}
	// Set by hand, the hardware address stays when ports come and go.
	l, err := s.LinkByIndex(br.Attrs().Index)
	if err == nil {
		err = s.LinkSetHardwareAddr(l, l.Attrs().HardwareAddr)
	}
	if err != nil {
		return fmt.Errorf("fix the hardware address of %s: %w", br.Attrs().Name, err)
	}
	return nil
}

// upTime bounds the wait for a port of the bridge: as long as the plugin waits.
const upTime = 2550 * time.Millisecond

// waitUp waits until the port carries traffic, which the kernel brings about a moment
// after both its ends are up. It returns the port's hardware address.
func (s *side) waitUp(ctx context.Context, name string) (string, error) {
	step := 200 * time.Microsecond
	for end := time.Now().Add(upTime); ; {
		flags, err := s.flags(name)
		if err != nil {
			return "", err
		}
		if flags&unix.IFF_RUNNING != 0 {
			return s.mac(name)
		}
		if time.Now().After(end) {
			return "", errs.New(errs.Unavailable, "bridge port in error state: %s carries nothing after %s", name, upTime)
		}
		select {
		case <-ctx.Done():
			return "", context.Cause(ctx)
		case <-time.After(step):
		}
		step = min(2*step, 5*time.Millisecond)
	}
}

// deleteLink takes a pod's interface away, and so its other end. A namespace or an
// interface that is gone is no error.
func deleteLink(ns, ifName string) error {
	if _, err := os.Stat(ns); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return inPod(ns, func(pod *side) error {
		index, err := pod.index(ifName)
		if err != nil || index == 0 {
			return err
		}
		if err := pod.LinkDel(numbered(ifName, index)); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("delete %s: %w", ifName, err)
		}
		return nil
	})
}

// cut takes the host's end of a link down: nothing comes through any more, whatever
// a process does that may still be in the pod's namespace. A link that is gone, or
// whose name another one has now, is no error.
func cut(end *types100.Interface) error {
	host, err := openSide()
	if err != nil {
		return err
	}
	defer host.close()
	index, err := host.index(end.Name)
	if err != nil || index == 0 {
		return err
	}
	if mac, err := host.mac(end.Name); err != nil || mac != end.Mac {
		return errs.Ignore(err, unix.ENODEV)
	}
	if err := host.LinkSetDown(numbered(end.Name, index)); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("take %s down: %w", end.Name, err)
	}
	return nil
}
