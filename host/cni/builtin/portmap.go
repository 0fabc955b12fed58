package builtin

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/failpoint"
)

// portmapConf is the portmap plugin's configuration, as far as it is known here.
type portmapConf struct {
	head
	Backend string `json:"backend"`
	SNAT    *bool  `json:"snat"`
	MasqAll bool   `json:"masqAll"`
	MarkBit *int   `json:"markMasqBit"`
	Runtime struct {
		Ports []portEntry `json:"portMappings"`
	} `json:"runtimeConfig"`
}

type portEntry struct {
	Host      int    `json:"hostPort"`
	Container int    `json:"containerPort"`
	Protocol  string `json:"protocol"`
	HostIP    string `json:"hostIP"`
}

// protocols are those whose ports are matched in nf_tables' own way.
var protocols = map[string]uint8{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP}

// defaultMarkBit is the plugin's: Kubernetes has 14 and 15, Calico 20 to 31.
const defaultMarkBit = 13

func readPortmap(c Call) (*portmapConf, error) {
	conf := &portmapConf{}
	if err := json.Unmarshal(c.Conf, conf); err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	for _, p := range conf.Runtime.Ports {
		if p.Host < 1 || p.Host > 65535 || p.Container < 1 || p.Container > 65535 {
			return nil, fmt.Errorf("invalid port mapping %d to %d", p.Host, p.Container)
		}
		if protocols[p.Protocol] == 0 {
			return nil, fmt.Errorf("protocol %q has no ports that are known here", p.Protocol)
		}
		if _, err := netip.ParseAddr(p.HostIP); p.HostIP != "" && err != nil {
			return nil, fmt.Errorf("host address of port %d: %w", p.Host, err)
		}
	}
	if conf.MarkBit != nil && (*conf.MarkBit < 0 || *conf.MarkBit > 31) {
		return nil, errors.New("markMasqBit must be between 0 and 31")
	}
	return conf, nil
}

func (conf *portmapConf) snat() bool { return conf.SNAT == nil || *conf.SNAT }

func (conf *portmapConf) markValue() uint32 {
	if conf.MarkBit != nil {
		return 1 << *conf.MarkBit
	}
	return 1 << defaultMarkBit
}

// The chains that all pods share.
const (
	chainDNAT    = "CNI-HOSTPORT-DNAT"
	chainSetMark = "CNI-HOSTPORT-SETMARK"
	chainMasq    = "CNI-HOSTPORT-MASQ"
)

// addPorts leads ports of the host to the pod.
func (p *Plugins) addPorts(ctx context.Context, c Call) (*types100.Result, error) {
	conf, err := readPortmap(c)
	if err != nil {
		return nil, err
	}
	r, err := conf.previous()
	if err != nil {
		return nil, err
	}
	if r == nil {
		return nil, errors.New("must be called as chained plugin")
	}
	if len(conf.Runtime.Ports) == 0 {
		return r, nil
	}
	done, err := p.rules.turn.Lock(ctx, table)
	if err != nil {
		return nil, err
	}
	defer done()
	n, letGo, err := p.rules.sockets.hold()
	if err != nil {
		return nil, err
	}
	defer letGo()
	for _, pod := range podAddresses(r, c.IfName) {
		if err := n.settle(func() ([]message, error) { return conf.rulesFor(n, c, pod) }); err != nil {
			return nil, fmt.Errorf("lead ports to %s: %w", pod.Addr(), err)
		}
		failpoint.Here("cni.ports.added")
		if err := conf.afterwards(pod.Addr()); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// podAddresses are the first of each family of the pod's interface.
func podAddresses(r *types100.Result, ifName string) []netip.Prefix {
	var v4, v6 []netip.Prefix
	for _, ip := range r.IPs {
		if i := ip.Interface; i != nil && *i >= 0 && *i < len(r.Interfaces) && (r.Interfaces[*i].Name != ifName || r.Interfaces[*i].Sandbox == "") {
			continue
		}
		a, _ := netip.AddrFromSlice(ip.Address.IP)
		bits, _ := ip.Address.Mask.Size()
		if p := netip.PrefixFrom(a.Unmap(), bits); p.Addr().Is4() && v4 == nil {
			v4 = append(v4, p)
		} else if !p.Addr().Is4() && v6 == nil {
			v6 = append(v6, p)
		}
	}
	return append(v4, v6...)
}

// rulesFor are the rules that lead to one address of the pod:
//
//	PREROUTING, OUTPUT: to an address of the host  -j CNI-HOSTPORT-DNAT
//	CNI-HOSTPORT-DNAT:  the pod's ports            -j CNI-DN-POD
//	CNI-DN-POD:         from the pod's own network, from the host itself: marked
//	CNI-DN-POD:         one port                   -j DNAT
//	POSTROUTING, first: what is marked             -j MASQUERADE
func (conf *portmapConf) rulesFor(n *nft, c Call, pod netip.Prefix) ([]message, error) {
	f := familyOf(pod.Addr())
	own := chainName("DN-", conf.Name, c.ContainerID)
	all, err := n.dropping(f, own, chainDNAT) // what an ADD that failed has left
	if err != nil {
		return nil, err
	}
	chains := []string{chainDNAT, "PREROUTING", "OUTPUT"}
	if conf.snat() {
		chains = append(chains, chainSetMark, chainMasq, "POSTROUTING")
	}
	fresh, err := n.missing(f, chains...)
	if err != nil {
		return nil, err
	}
	all = append(all, fresh...)
	have := func(chain string, is func(seen) bool) (bool, error) {
		list, err := n.rules(f, chain)
		return slices.ContainsFunc(list, is), err
	}
	once := func(chain string, first bool, r rule, is func(seen) bool) error {
		ok, err := have(chain, is)
		if !ok {
			all = append(all, f.add(chain, first, r))
		}
		return err
	}
	leads := func(to string) func(seen) bool { return func(s seen) bool { return s.jump == to } }
	var errs []error
	if conf.snat() {
		v := conf.markValue()
		info := native32(native32(nil, v), v) // struct xt_mark_tginfo2: mark, mask
		errs = append(errs,
			once(chainSetMark, false, rule{}.comment("CNI portfwd masquerade mark").target("MARK", 2, info), func(s seen) bool { return bytes.Contains(s.exprs, attr(unix.NFTA_TARGET_INFO, info)) }),
			once(chainMasq, false, rule{}.mark(v).target("MASQUERADE", 0, f.masqueradeInfo()), func(s seen) bool { return bytes.Contains(s.exprs, attr(unix.NFTA_DATA_VALUE, info[:4])) }),
			once("POSTROUTING", true, rule{}.comment("CNI portfwd requiring masquerade").jump(chainMasq), leads(chainMasq)))
	}
	local := rule{}.match("addrtype", 1, append(binary.NativeEndian.AppendUint16([]byte{0, 0}, 1<<2), 0, 0, 0, 0)) // struct xt_addrtype_info_v1; XT_ADDRTYPE_LOCAL
	for _, chain := range []string{"PREROUTING", "OUTPUT"} {
		errs = append(errs, once(chain, false, local.jump(chainDNAT), leads(chainDNAT)))
	}
	all = append(all, f.newChain(own))
	for _, r := range conf.podRules(f, pod) {
		all = append(all, f.add(own, false, r))
	}
	for _, r := range conf.entryRules(c) {
		all = append(all, f.add(chainDNAT, false, r.jump(own)))
	}
	return all, errors.Join(errs...)
}

// entryRules match all ports of the pod, up to 15 in a rule.
func (conf *portmapConf) entryRules(c Call) []rule {
	comment := fmt.Sprintf(`dnat name: "%s" id: "%s"`, conf.Name, c.ContainerID)
	if len(comment) > 255 {
		comment = comment[:253] + "..."
	}
	var out []rule
	for _, proto := range []string{"tcp", "udp"} {
		var ports []int
		for _, p := range conf.Runtime.Ports {
			if p.Protocol == proto {
				ports = append(ports, p.Host)
			}
		}
		for part := range slices.Chunk(ports, 15) {
			// struct xt_multiport_v1: flags, count, 15 ports, 15 range flags, invert
			info := make([]byte, 48)
			info[0], info[1] = 1, byte(len(part)) // XT_MULTIPORT_DESTINATION
			for i, port := range part {
				binary.NativeEndian.PutUint16(info[2+2*i:], uint16(port))
			}
			out = append(out, rule{}.protocol(protocols[proto]).comment(comment).match("multiport", 1, info))
		}
	}
	return out
}

// podRules are those of the pod's own chain.
func (conf *portmapConf) podRules(f family, pod netip.Prefix) []rule {
	var out []rule
	for _, p := range conf.Runtime.Ports {
		base := func(from netip.Prefix) rule {
			r := rule{}.protocol(protocols[p.Protocol])
			if from.IsValid() {
				r = r.address(f.source, from, false)
			}
			if a, err := netip.ParseAddr(p.HostIP); err == nil && !a.IsUnspecified() {
				a = a.Unmap()
				r = r.address(f.dest, netip.PrefixFrom(a, a.BitLen()), false)
			}
			return r.port(uint16(p.Host))
		}
		if a, err := netip.ParseAddr(p.HostIP); err == nil && familyOf(a.Unmap()).proto != f.proto {
			continue
		}
		if conf.snat() {
			from := pod
			if conf.MasqAll {
				from = netip.PrefixFrom(pod.Addr(), 0)
			}
			out = append(out, base(from).jump(chainSetMark))
			if f.loopback.IsValid() && !conf.MasqAll {
				out = append(out, base(netip.PrefixFrom(f.loopback, f.loopback.BitLen())).jump(chainSetMark))
			}
		}
		out = append(out, base(netip.Prefix{}).target("DNAT", 2, natRange(pod.Addr(), uint16(p.Container))))
	}
	return out
}

// natRange is struct nf_nat_range2: flags, two addresses, two ports, a base port.
func natRange(a netip.Addr, port uint16) []byte {
	const flags = 1 | 2 // NF_NAT_RANGE_MAP_IPS, NF_NAT_RANGE_PROTO_SPECIFIED
	b := native32(make([]byte, 48), flags)
	copy(b[4:], a.AsSlice())
	copy(b[20:], a.AsSlice())
	binary.BigEndian.PutUint16(b[36:], port)
	binary.BigEndian.PutUint16(b[38:], port)
	return b
}

// native32 puts a number in front of b, or appends it where b has no room.
func native32(b []byte, v uint32) []byte {
	if len(b) > 4 {
		binary.NativeEndian.PutUint32(b, v)
		return b
	}
	return binary.NativeEndian.AppendUint32(b, v)
}

// afterwards lets the host itself use the ports by its loopback, and makes UDP peers
// of before be looked at anew.
func (conf *portmapConf) afterwards(pod netip.Addr) error {
	family := netlink.InetFamily(unix.AF_INET)
	if !pod.Is4() {
		family = unix.AF_INET6
	}
	for _, p := range conf.Runtime.Ports {
		if p.Protocol == "udp" {
			filter := &netlink.ConntrackFilter{}
			err := errors.Join(filter.AddProtocol(unix.IPPROTO_UDP), filter.AddPort(netlink.ConntrackOrigDstPort, uint16(p.Host)))
			if err != nil {
				return err
			}
			// Only good to have, as for the plugin: old entries end by themselves.
			_, _ = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, filter)
		}
	}
	if !conf.snat() || !pod.Is4() {
		return nil
	}
	routes, err := netlink.RouteGet(pod.AsSlice())
	if err != nil || len(routes) == 0 {
		return nil // the plugin takes it that way, too
	}
	l, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return nil
	}
	if err := sysctl("1", "ipv4", "conf", l.Attrs().Name, "route_localnet"); err != nil {
		return fmt.Errorf("enable route_localnet of %s: %w", l.Attrs().Name, err)
	}
	return nil
}

func (p *Plugins) delPorts(ctx context.Context, c Call) error {
	conf, err := readPortmap(c)
	if err != nil || len(conf.Runtime.Ports) == 0 {
		return err
	}
	done, err := p.rules.turn.Lock(ctx, table)
	if err != nil {
		return err
	}
	defer done()
	n, letGo, err := p.rules.sockets.hold()
	if err != nil {
		return err
	}
	defer letGo()
	own := chainName("DN-", conf.Name, c.ContainerID)
	if err := errors.Join(n.dropChain(ipv4, own, chainDNAT), n.dropChain(ipv6, own, chainDNAT)); err != nil {
		return fmt.Errorf("take away the way of ports: %w", err)
	}
	return nil
}
