package builtin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/failpoint"
)

func readPTP(c Call) (*linkConf, error) {
	conf := &linkConf{}
	if err := json.Unmarshal(c.Conf, conf); err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return conf, nil
}

// addPTP joins a pod to the host by a link of its own. All that the pod sends goes to
// the host's end, which has the gateway's address; the host has a route to the pod.
func (p *Plugins) addPTP(ctx context.Context, c Call) (r *types100.Result, err error) {
	conf, err := readPTP(c)
	if err != nil {
		return nil, err
	}
	host, err := openSide()
	if err != nil {
		return nil, err
	}
	defer host.close()
	if r, err = p.address(ctx, c); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.undo(context.WithoutCancel(ctx), c, conf, nil, addresses(r)))
			r = nil
		}
	}()
	for _, ip := range r.IPs {
		ip.Interface = types100.Int(1)
		if err := forward(ip.Address.IP); err != nil {
			return r, err
		}
	}
	veth, err := host.veth(c, conf.MTU, 0, nil)
	if err != nil {
		return r, err
	}
	failpoint.Here("cni.ptp.made")
	r.Interfaces = []*types100.Interface{{Name: veth.Attrs().Name}, {Name: c.IfName, Sandbox: c.NetNS}}
	if r.Interfaces[0].Mac, err = host.mac(veth.Attrs().Name); err != nil {
		return r, err
	}
	via := func(pod *side, l netlink.Link) error { return throughGateway(pod, l, r) }
	if r.Interfaces[1].Mac, err = configure(c, r, nil, via); err != nil {
		return r, err
	}
	for _, ip := range r.IPs {
		if err := host.routeTo(veth, ip); err != nil {
			return r, err
		}
	}
	if conf.IPMasq {
		if err := p.rules.masquerade(r.IPs, conf.Name, c.ContainerID); err != nil {
			return r, err
		}
	}
	r.DNS = conf.dns(r.DNS)
	return r, nil
}

func (p *Plugins) delPTP(ctx context.Context, c Call) error {
	conf, err := readPTP(c)
	if err != nil {
		return err
	}
	return p.del(ctx, c, conf, "")
}

func single(ip net.IP) *net.IPNet {
	if v4 := ip.To4(); v4 != nil {
		return &net.IPNet{IP: v4, Mask: net.CIDRMask(32, 32)}
	}
	return &net.IPNet{IP: ip, Mask: net.CIDRMask(128, 128)}
}

// throughGateway replaces the route that came with an address, by which the pod would
// look for its neighbours on the link, by one to the gateway and one through it.
func throughGateway(pod *side, l netlink.Link, r *types100.Result) error {
	for _, ip := range r.IPs {
		subnet := &net.IPNet{IP: ip.Address.IP.Mask(ip.Address.Mask), Mask: ip.Address.Mask}
		if err := pod.RouteDel(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: subnet, Scope: netlink.SCOPE_NOWHERE}); err != nil {
			return fmt.Errorf("delete route to %s: %w", subnet, err)
		}
		for _, route := range []netlink.Route{
			{LinkIndex: l.Attrs().Index, Dst: single(ip.Gateway), Scope: netlink.SCOPE_LINK, Src: ip.Address.IP},
			{LinkIndex: l.Attrs().Index, Dst: subnet, Scope: netlink.SCOPE_UNIVERSE, Gw: ip.Gateway, Src: ip.Address.IP},
		} {
			if err := pod.RouteAdd(&route); err != nil {
				return fmt.Errorf("add route to %s: %w", route.Dst, err)
			}
		}
	}
	return nil
}

// routeTo gives the host's end the gateway's address and the host a route to the pod.
func (s *side) routeTo(l netlink.Link, ip *types100.IPConfig) error {
	if err := s.AddrAdd(l, &netlink.Addr{IPNet: single(ip.Gateway)}); err != nil {
		return fmt.Errorf("add address %s to %s: %w", ip.Gateway, l.Attrs().Name, err)
	}
	err := s.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Scope: netlink.SCOPE_HOST, Dst: single(ip.Address.IP)})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add route to %s: %w", ip.Address.IP, err)
	}
	return nil
}
