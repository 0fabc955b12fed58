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
	"time"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/host/netns"
)

// host is the host's side of a link: a netlink socket in the network namespace of
// the thread that opened it.
type host struct{ *netlink.Handle }

func openHost() (*host, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return &host{h}, nil
}

func (h *host) close() { h.Close() }

// inPod runs f on a thread in a pod's network namespace, with a netlink socket there.
func inPod(path string, f func(*netlink.Handle) error) error {
	return netns.In(path, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		defer h.Close()
		return f(h)
	})
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

// bridge returns the network's bridge, made if need be.
func (h *host) bridge(conf *bridgeConf) (*netlink.Bridge, error) {
	l, err := h.LinkByName(conf.Bridge)
	if missing(err) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = conf.Bridge, conf.MTU
		if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("make bridge %s: %w", conf.Bridge, err)
		}
		l, err = h.LinkByName(conf.Bridge)
	}
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", conf.Bridge, err)
	}
	br, ok := l.(*netlink.Bridge)
	if !ok {
		return nil, errs.New(errs.FailedPrecondition, "%q already exists but is not a bridge", conf.Bridge)
	}
	if conf.Promisc && br.Promisc == 0 {
		if err := h.SetPromiscOn(br); err != nil {
			return nil, fmt.Errorf("set %s promiscuous: %w", conf.Bridge, err)
		}
	}
	_ = sysctl("0", "ipv6", "conf", conf.Bridge, "accept_ra") // not there without IPv6
	if br.Flags&net.FlagUp == 0 {
		if err := h.LinkSetUp(br); err != nil {
			return nil, fmt.Errorf("bring %s up: %w", conf.Bridge, err)
		}
	}
	return br, nil
}

func missing(err error) bool {
	var gone netlink.LinkNotFoundError
	return errors.As(err, &gone)
}

// port is the host's end of a pod's link.
type port struct {
	name string
	link netlink.Link
}

// veth makes a pair, one end with the pod's name for it in the pod's namespace, the
// other in the bridge, up.
func (h *host) veth(c Call, conf *bridgeConf, br *netlink.Bridge) (*port, error) {
	mac, err := conf.mac()
	if err != nil {
		return nil, fmt.Errorf("address of the interface: %w", err)
	}
	ns, err := os.Open(c.NetNS)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	defer ns.Close()
	attrs := netlink.NewLinkAttrs()
	// The queue lengths are the plugin's: none at the host's end, the kernel's default in
	// the pod.
	attrs.MTU, attrs.MasterIndex, attrs.TxQLen = conf.MTU, br.Index, 0
	for range 10 { // until the name is free
		attrs.Name = randomName()
		err = h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: c.IfName, PeerNamespace: netlink.NsFd(int(ns.Fd())), PeerHardwareAddr: mac, PeerTxQLen: 1000})
		if !errors.Is(err, unix.EEXIST) || !h.exists(attrs.Name) {
			break
		}
	}
	if errors.Is(err, unix.EEXIST) {
		return nil, errs.New(errs.AlreadyExists, "interface %s is in the pod already", c.IfName)
	}
	if err != nil {
		return nil, fmt.Errorf("make veth pair: %w", err)
	}
	_ = sysctl("0", "ipv6", "conf", attrs.Name, "accept_ra") // not there without IPv6
	l, err := h.LinkByName(attrs.Name)
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", attrs.Name, err)
	}
	if conf.Hairpin {
		if err := h.LinkSetHairpin(l, true); err != nil {
			return nil, fmt.Errorf("set hairpin mode of %s: %w", attrs.Name, err)
		}
	}
	if err := h.LinkSetUp(l); err != nil {
		return nil, fmt.Errorf("bring %s up: %w", attrs.Name, err)
	}
	return &port{attrs.Name, l}, nil
}

func (h *host) exists(name string) bool {
	_, err := h.LinkByName(name)
	return err == nil
}

func randomName() string {
	b := make([]byte, 4)
	_, _ = rand.Read(b)
	return "veth" + hex.EncodeToString(b)
}

// configure sets up the pod's end and returns its hardware address.
func configure(c Call, conf *bridgeConf, r *types100.Result) (mac string, err error) {
	err = inPod(c.NetNS, func(pod *netlink.Handle) error {
		l, err := pod.LinkByName(c.IfName)
		if err != nil {
			return fmt.Errorf("look up %s: %w", c.IfName, err)
		}
		mac = l.Attrs().HardwareAddr.String()
		// Not there without IPv6, or in old kernels; the plugin does not mind either.
		if conf.DAD {
			_ = sysctl("1", "ipv6", "conf", c.IfName, "enhanced_dad")
			_ = sysctl("1", "ipv6", "conf", c.IfName, "accept_dad")
		} else {
			_ = sysctl("0", "ipv6", "conf", c.IfName, "accept_dad")
		}
		_ = sysctl("1", "ipv4", "conf", c.IfName, "arp_notify")
		if err := addAddresses(pod, l, c.IfName, r); err != nil {
			return err
		}
		if err := pod.LinkSetUp(l); err != nil {
			return fmt.Errorf("bring %s up: %w", c.IfName, err)
		}
		if err := settle(pod, l); err != nil {
			return err
		}
		return addRoutes(pod, l, r)
	})
	return mac, err
}

func addAddresses(pod *netlink.Handle, l netlink.Link, ifName string, r *types100.Result) error {
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

func settle(pod *netlink.Handle, l netlink.Link) error {
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

func addRoutes(pod *netlink.Handle, l netlink.Link, r *types100.Result) error {
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
func (h *host) gateways(br *netlink.Bridge, all []net.IPNet, force bool) error {
	for _, gw := range all {
		if err := h.gateway(br, gw, force); err != nil {
			return err
		}
		name := []string{"ipv4", "ip_forward"}
		if gw.IP.To4() == nil {
			name = []string{"ipv6", "conf", "all", "forwarding"}
		}
		if err := sysctl("1", name...); err != nil {
			return fmt.Errorf("enable forwarding: %w", err)
		}
	}
	return nil
}

func (h *host) gateway(br *netlink.Bridge, gw net.IPNet, force bool) error {
	family := netlink.FAMILY_V6
	if gw.IP.To4() != nil {
		family = netlink.FAMILY_V4
	}
	have, err := h.AddrList(br, family)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", br.Name, err)
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
			return errs.New(errs.FailedPrecondition, "%q already has an IP address different from %s", br.Name, gw.String())
		}
		if err := h.AddrDel(br, &netlink.Addr{IPNet: a.IPNet}); err != nil {
			return fmt.Errorf("remove address %s from %s: %w", a.IPNet, br.Name, err)
		}
	}
	if err := h.AddrAdd(br, &netlink.Addr{IPNet: &gw}); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add address %s to %s: %w", gw.String(), br.Name, err)
	}
	// Set by hand, the hardware address stays when ports come and go.
	if err := h.LinkSetHardwareAddr(br, br.HardwareAddr); err != nil {
		return fmt.Errorf("fix the hardware address of %s: %w", br.Name, err)
	}
	return nil
}

// upTime bounds the wait for a port of the bridge: as long as the plugin waits.
const upTime = 2550 * time.Millisecond

// waitUp waits until the port carries traffic, which the kernel brings about a moment
// after both its ends are up. It returns the port's hardware address.
func (h *host) waitUp(ctx context.Context, p *port) (string, error) {
	step := 200 * time.Microsecond
	for end := time.Now().Add(upTime); ; {
		l, err := h.LinkByIndex(p.link.Attrs().Index)
		if err != nil {
			return "", fmt.Errorf("look up %s: %w", p.name, err)
		}
		if l.Attrs().OperState == netlink.OperUp {
			return l.Attrs().HardwareAddr.String(), nil
		}
		if time.Now().After(end) {
			return "", errs.New(errs.Unavailable, "bridge port in error state: %s is %s", p.name, l.Attrs().OperState)
		}
		select {
		case <-ctx.Done():
			return "", context.Cause(ctx)
		case <-time.After(step):
		}
		step = min(2*step, 50*time.Millisecond)
	}
}

// deleteLink takes a pod's interface away, and so its other end. A namespace or an
// interface that is gone is no error.
func deleteLink(ns, ifName string) error {
	if _, err := os.Stat(ns); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return inPod(ns, func(pod *netlink.Handle) error {
		l, err := pod.LinkByName(ifName)
		if missing(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("look up %s: %w", ifName, err)
		}
		if err := pod.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("delete %s: %w", ifName, err)
		}
		return nil
	})
}

// cut takes the host's end of a link down: nothing comes through any more, whatever
// a process does that may still be in the pod's namespace. A link that is gone, or
// whose name another one has now, is no error.
func cut(end *types100.Interface) error {
	h, err := openHost()
	if err != nil {
		return err
	}
	defer h.close()
	l, err := h.LinkByName(end.Name)
	if missing(err) || err == nil && (l.Type() != "veth" || l.Attrs().HardwareAddr.String() != end.Mac) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look up %s: %w", end.Name, err)
	}
	if err := h.LinkSetDown(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("take %s down: %w", end.Name, err)
	}
	return nil
}
