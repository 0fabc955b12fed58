package cni

import (
	"encoding/json"
	"fmt"
	"net/netip"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
)

// IPPreference says which of a pod's addresses is its first.
type IPPreference string

// The preferences, as containerd's ip_pref has them.
const (
	PreferIPv4 IPPreference = "ipv4" // also ""
	PreferIPv6 IPPreference = "ipv6"
	PreferCNI  IPPreference = "cni" // as the plugin gave them
)

// Result is what came of an ADD.
type Result struct{ Saved Saved }

// PodIPs are the addresses of the pod's first network, the preferred family first.
func (r Result) PodIPs(prefer IPPreference) []netip.Addr { return r.Saved.PodIPs(prefer) }

// PodIPs are the addresses of the pod's first network, the preferred family first;
// none before its ADD.
func (s Saved) PodIPs(prefer IPPreference) []netip.Addr {
	if len(s.Attachments) == 0 {
		return nil
	}
	all, err := s.Attachments[0].IPs()
	if err != nil || prefer == PreferCNI {
		return all
	}
	want6 := prefer == PreferIPv6
	for i, a := range all {
		if a.Is6() == want6 {
			return append(append([]netip.Addr{a}, all[:i]...), all[i+1:]...)
		}
	}
	return all
}

// IPs are the addresses that the attachment got for its own interface, or for
// none in particular, in the plugin's order.
func (a Attached) IPs() ([]netip.Addr, error) {
	r, err := a.current()
	if err != nil || r == nil {
		return nil, err
	}
	var out []netip.Addr
	for _, ip := range r.IPs {
		if i := ip.Interface; i != nil && *i >= 0 && *i < len(r.Interfaces) {
			if r.Interfaces[*i].Name != a.IfName {
				continue
			}
		}
		if addr, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			out = append(out, addr.Unmap())
		}
	}
	return out, nil
}

// current is the result in the newest version's form; nil before the ADD.
func (a Attached) current() (*types100.Result, error) {
	if a.Result == nil {
		return nil, nil
	}
	var v struct {
		Version string `json:"cniVersion"`
	}
	if err := json.Unmarshal(a.Result, &v); err != nil {
		return nil, fmt.Errorf("result of network %s: %w", a.Network, err)
	}
	r, err := create.Create(v.Version, a.Result)
	if err == nil {
		var out *types100.Result
		if out, err = types100.NewResultFromResult(r); err == nil {
			return out, nil
		}
	}
	return nil, fmt.Errorf("result of network %s: %w", a.Network, err)
}
