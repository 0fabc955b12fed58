package builtin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
)

// ipamConf is host-local's configuration: it gets the whole one of the plugin that
// hands addresses over to it.
type ipamConf struct {
	head
	IPAM struct {
		Type    string         `json:"type"`
		DataDir string         `json:"dataDir"`
		Routes  []*types.Route `json:"routes"`
		Ranges  [][]ipRange    `json:"ranges"`
		ipRange
	} `json:"ipam"`
	Runtime struct {
		IPs []string `json:"ips"`
	} `json:"runtimeConfig"`
}

// ipRange is a part of a subnet from which addresses are given, both ends included.
type ipRange struct {
	Start   netip.Addr   `json:"rangeStart,omitzero"`
	End     netip.Addr   `json:"rangeEnd,omitzero"`
	Subnet  netip.Prefix `json:"subnet"`
	Gateway netip.Addr   `json:"gateway,omitzero"`
}

// defaultData is where host-local keeps its files.
const defaultData = "/var/lib/cni/networks"

func readIPAM(c Call) (*ipamConf, error) {
	conf := &ipamConf{}
	if err := json.Unmarshal(c.Conf, conf); err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	i := &conf.IPAM
	if i.DataDir == "" {
		i.DataDir = defaultData
	}
	if i.Subnet.IsValid() { // the old form, of one range
		i.Ranges = append([][]ipRange{{i.ipRange}}, i.Ranges...)
	}
	if len(i.Ranges) == 0 {
		return nil, errors.New("no IP ranges specified")
	}
	families := map[bool]int{}
	var all []ipRange
	for n, set := range i.Ranges {
		if len(set) == 0 {
			return nil, fmt.Errorf("invalid range set %d: empty range set", n)
		}
		for k := range set {
			r := &set[k]
			if err := r.complete(); err != nil {
				return nil, fmt.Errorf("invalid range set %d: %w", n, err)
			}
			if r.Start.Is4() != set[0].Start.Is4() {
				return nil, fmt.Errorf("invalid range set %d: mixed address families", n)
			}
			if o := slices.IndexFunc(all, r.overlaps); o >= 0 {
				return nil, fmt.Errorf("range %s-%s overlaps with %s-%s", r.Start, r.End, all[o].Start, all[o].End)
			}
			all = append(all, *r)
		}
		families[set[0].Start.Is4()]++
	}
	if families[true] > 1 || families[false] > 1 {
		if ok, _ := version.GreaterThanOrEqualTo(conf.Version, "0.3.0"); !ok {
			return nil, fmt.Errorf("CNI version %s has one address of each family", conf.Version)
		}
	}
	return conf, nil
}

// complete fills in what a range leaves open: the first address is the gateway's,
// the last is the subnet's, for IPv4 without the broadcast address.
func (r *ipRange) complete() error {
	if !r.Subnet.IsValid() {
		return errors.New("a range needs a subnet")
	}
	size := r.Subnet.Addr().BitLen()
	if r.Subnet.Addr().Is4In6() {
		return fmt.Errorf("network %s: write it as IPv4", r.Subnet)
	}
	if r.Subnet.Bits() > size-2 {
		return fmt.Errorf("network %s too small to allocate from", r.Subnet)
	}
	if r.Subnet.Masked() != r.Subnet {
		return fmt.Errorf("network has host bits set: the network address of %s is %s", r.Subnet, r.Subnet.Masked().Addr())
	}
	if !r.Gateway.IsValid() {
		r.Gateway = r.Subnet.Addr().Next()
	}
	for _, end := range []struct {
		name string
		addr *netip.Addr
		or   netip.Addr
	}{{"RangeStart", &r.Start, r.Subnet.Addr().Next()}, {"RangeEnd", &r.End, last(r.Subnet)}} {
		if *end.addr = end.addr.Unmap(); !end.addr.IsValid() {
			*end.addr = end.or
		}
		if !r.Subnet.Contains(*end.addr) {
			return fmt.Errorf("%s %s not in network %s", end.name, *end.addr, r.Subnet)
		}
	}
	if r.End.Less(r.Start) {
		return fmt.Errorf("RangeEnd %s is before RangeStart %s", r.End, r.Start)
	}
	r.Gateway = r.Gateway.Unmap()
	return nil
}

func last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	if len(b) == 4 {
		b[3]--
	}
	a, _ := netip.AddrFromSlice(b) // 4 or 16 bytes
	return a
}

func (r *ipRange) has(a netip.Addr) bool {
	return r.Subnet.Contains(a) && !a.Less(r.Start) && !r.End.Less(a)
}

func (r *ipRange) overlaps(o ipRange) bool {
	return r.Start.BitLen() == o.Start.BitLen() && !r.End.Less(o.Start) && !o.End.Less(r.Start)
}

// find returns the range of a set that an address is in.
func find(set []ipRange, a netip.Addr) *ipRange {
	for i := range set {
		if a.IsValid() && set[i].has(a) {
			return &set[i]
		}
	}
	return nil
}

func describe(set []ipRange) string {
	var b bytes.Buffer
	for i, r := range set {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%s-%s", r.Start, r.End)
	}
	return b.String()
}

// asked are the addresses that the runtime wants.
func (c *ipamConf) asked() ([]netip.Addr, error) {
	var out []netip.Addr
	for _, text := range c.Runtime.IPs {
		a, err := netip.ParseAddr(text)
		if p, perr := netip.ParsePrefix(text); perr == nil {
			a, err = p.Addr(), nil
		}
		if err != nil {
			return nil, fmt.Errorf("asked for address %q: %w", text, err)
		}
		out = append(out, a.Unmap())
	}
	return out, nil
}

func ipConfig(a netip.Addr, r *ipRange) *types100.IPConfig {
	return &types100.IPConfig{
		Address: net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(r.Subnet.Bits(), a.BitLen())},
		Gateway: r.Gateway.AsSlice(),
	}
}
