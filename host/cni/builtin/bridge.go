package builtin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"github.com/berthd/berth/base/failpoint"
)

// linkConf is what the configurations of plugins that make a veth have in common.
type linkConf struct {
	head
	IPMasq        bool   `json:"ipMasq"`
	IPMasqBackend string `json:"ipMasqBackend"`
	MTU           int    `json:"mtu"`
	IPAM          struct {
		Type string `json:"type"`
	} `json:"ipam"`
	Runtime struct {
		MAC string `json:"mac"`
	} `json:"runtimeConfig"`
}

// bridgeConf is the bridge plugin's configuration, as far as it is known here.
type bridgeConf struct {
	linkConf
	Bridge       string `json:"bridge"`
	IsGW         bool   `json:"isGateway"`
	IsDefaultGW  bool   `json:"isDefaultGateway"`
	ForceAddress bool   `json:"forceAddress"`
	Hairpin      bool   `json:"hairpinMode"`
	Promisc      bool   `json:"promiscMode"`
	DAD          bool   `json:"enabledad"`
}

func readBridge(c Call) (*bridgeConf, error) {
	conf := &bridgeConf{Bridge: "cni0"}
	if err := json.Unmarshal(c.Conf, conf); err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	conf.IsGW = conf.IsGW || conf.IsDefaultGW
	return conf, nil
}

// addBridge joins a pod to a bridge of the host:
//
//	address ─> bridge ─> veth, its host end in the bridge ─> pod's end: sysctls, addresses, up, routes
//	─> gateway addresses on the bridge, forwarding ─> masquerading ─> port is up
//
// What fails is undone at once, as a caller expects of a plugin, except the bridge,
// which is everybody's.
func (p *Plugins) addBridge(ctx context.Context, c Call) (r *types100.Result, err error) {
	conf, err := readBridge(c)
	if err != nil {
		return nil, err
	}
	if conf.Hairpin && conf.Promisc {
		return nil, errors.New("cannot set hairpin mode and promiscuous mode at the same time")
	}
	host, err := openSide()
	if err != nil {
		return nil, err
	}
	defer host.close()
	got, err := p.address(ctx, c)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			undo := context.WithoutCancel(ctx)
			err = errors.Join(err, p.undo(undo, c, &conf.linkConf, nil, addresses(got)))
		}
	}()
	br, err := p.bridges.get(host, conf)
	if err != nil {
		return nil, err
	}
	r = &types100.Result{CNIVersion: types100.ImplementedSpecVersion, IPs: got.IPs, Routes: got.Routes, DNS: got.DNS}
	gateways := conf.gateways(r)
	veth, err := host.joined(c, conf, br)
	if err != nil {
		return nil, err
	}
	failpoint.Here("cni.veth.made")
	r.Interfaces = []*types100.Interface{{Name: conf.Bridge}, {Name: veth.Attrs().Name}, {Name: c.IfName, Sandbox: c.NetNS}}
	if r.Interfaces[2].Mac, err = configure(c, r, conf.before(c.IfName), nil); err != nil {
		return nil, err
	}
	if conf.IsGW {
		if err := host.gateways(br, gateways, conf.ForceAddress); err != nil {
			return nil, err
		}
	}
	if conf.IPMasq {
		if err := p.rules.masquerade(r.IPs, conf.Name, c.ContainerID); err != nil {
			return nil, err
		}
		failpoint.Here("cni.masqueraded")
	}
	if r.Interfaces[1].Mac, err = host.waitUp(ctx, veth.Attrs().Name); err != nil {
		return nil, err
	}
	// Asked only now: it may have changed with the bridge's first port.
	if r.Interfaces[0].Mac, err = host.mac(conf.Bridge); err != nil {
		return nil, err
	}
	r.DNS = conf.dns(r.DNS)
	return r, nil
}

// dns is the configuration's, if it has any, else the address plugin's.
func (h head) dns(or types.DNS) types.DNS {
	if d := h.DNS; d.Nameservers != nil || d.Search != nil || d.Options != nil || d.Domain != "" {
		return d
	}
	return or
}

// before sets what must be set before the interface gets an address. It is not there
// without IPv6, or in old kernels; the program does not mind either.
func (conf *bridgeConf) before(ifName string) func(*side) error {
	return func(*side) error {
		dad := "0"
		if conf.DAD {
			dad = "1"
			_ = sysctl("1", "ipv6", "conf", ifName, "enhanced_dad")
		}
		_ = sysctl(dad, "ipv6", "conf", ifName, "accept_dad")
		_ = sysctl("1", "ipv4", "conf", ifName, "arp_notify")
		return nil
	}
}

// gateways completes the result: the gateway of each address, and the default routes
// if the bridge is to be one. It returns the addresses that the bridge should have.
func (conf *bridgeConf) gateways(r *types100.Result) []net.IPNet {
	var out []net.IPNet
	found := map[bool]bool{}
	for _, ip := range r.IPs {
		ip.Interface = types100.Int(2)
		v4 := ip.Address.IP.To4() != nil
		if ip.Gateway == nil && conf.IsGW {
			first, _ := netip.AddrFromSlice(ip.Address.IP.Mask(ip.Address.Mask))
			ip.Gateway = first.Next().AsSlice()
		}
		all := net.IPNet{IP: net.IPv6zero, Mask: net.IPMask(net.IPv6zero)}
		if v4 {
			all = net.IPNet{IP: net.IPv4zero, Mask: net.IPMask(net.IPv4zero)}
		}
		if conf.IsDefaultGW && !found[v4] {
			found[v4] = true
			if !slices.ContainsFunc(r.Routes, func(t *types.Route) bool { return t.GW != nil && t.Dst.String() == all.String() }) {
				r.Routes = append(r.Routes, &types.Route{Dst: all, GW: ip.Gateway})
			}
		}
		out = append(out, net.IPNet{IP: ip.Gateway, Mask: ip.Address.Mask})
	}
	return out
}

func addresses(r *types100.Result) []netip.Addr {
	var out []netip.Addr
	if r == nil {
		return nil
	}
	for _, ip := range r.IPs {
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			out = append(out, a.Unmap())
		}
	}
	return out
}

func (p *Plugins) delBridge(ctx context.Context, c Call) error {
	conf, err := readBridge(c)
	if err != nil {
		return err
	}
	return p.del(ctx, c, &conf.linkConf, conf.Bridge)
}

// del undoes a link by what the ADD's result says of it. Of the host's interfaces
// there the first that is not the bridge is the link's end.
func (p *Plugins) del(ctx context.Context, c Call, conf *linkConf, bridge string) error {
	prev, err := conf.previous()
	if err != nil {
		return err
	}
	var end *types100.Interface
	if prev != nil {
		for _, i := range prev.Interfaces {
			if i.Sandbox == "" && i.Name != bridge && end == nil {
				end = i
			}
		}
	}
	return p.undo(ctx, c, conf, end, addresses(prev))
}

// undo takes the link away, then the rules, which may be there also when the
// namespace is gone, and last frees the addresses: so none is given anew that still
// answers. end is the host's end of the link, if that is known.
func (p *Plugins) undo(ctx context.Context, c Call, conf *linkConf, end *types100.Interface, given []netip.Addr) error {
	if end != nil && (c.Ending || c.NetNS == "") {
		if err := cut(end); err != nil {
			return err
		}
	} else if c.NetNS != "" {
		if err := deleteLink(c.NetNS, c.IfName); err != nil {
			return err
		}
	}
	failpoint.Here("cni.veth.deleted")
	if conf.IPMasq {
		if err := p.rules.unmasquerade(conf.Name, c.ContainerID); err != nil {
			return err
		}
	}
	return p.release(ctx, c, given)
}

// mac reads the address that the runtime wants the interface to have.
func (conf *linkConf) mac() (net.HardwareAddr, error) {
	if conf.Runtime.MAC == "" {
		return nil, nil
	}
	return net.ParseMAC(conf.Runtime.MAC)
}

// loopback is the plugin of that name: it brings the interface up and tells its
// addresses, one of each family.
func loopback(c Call) (*types100.Result, error) {
	var h head
	if err := json.Unmarshal(c.Conf, &h); err != nil {
		return nil, err
	}
	r, err := h.previous()
	if err != nil {
		return nil, err
	}
	err = inPod(c.NetNS, func(pod *side) error {
		lo, err := pod.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("look up lo: %w", err)
		}
		if err := pod.LinkSetUp(lo); err != nil {
			return fmt.Errorf("bring lo up: %w", err)
		}
		if r != nil {
			return nil
		}
		r = &types100.Result{
			CNIVersion: types100.ImplementedSpecVersion,
			Interfaces: []*types100.Interface{{Name: "lo", Mac: "00:00:00:00:00:00", Sandbox: c.NetNS}},
		}
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			all, err := pod.AddrList(lo, family)
			if err != nil {
				return fmt.Errorf("list addresses of lo: %w", err)
			}
			if len(all) > 0 {
				r.IPs = append(r.IPs, &types100.IPConfig{Interface: types100.Int(0), Address: *all[0].IPNet})
			}
		}
		return nil
	})
	return r, err
}

func loopbackDown(c Call) error {
	if c.NetNS == "" || c.Ending {
		return nil
	}
	return inPod(c.NetNS, func(pod *side) error {
		lo, err := pod.LinkByName("lo")
		if err == nil {
			err = pod.LinkSetDown(lo)
		}
		if err != nil {
			return fmt.Errorf("take lo down: %w", err)
		}
		return nil
	})
}
