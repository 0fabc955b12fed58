package builtin

import (
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/berthd/berth/base/keylock"
)

// backend writes rules as iptables would.
type backend struct {
	sockets
	turn  keylock.Map // one change of the chains that all pods share at a time
	probe struct {
		sync.Mutex
		key string // of the iptables program that was looked at
		ok  bool
	}
}

// usable reports whether rules for this backend setting are iptables' on nf_tables,
// which is the kind that is known here. "" is the plugins' default: iptables, unless
// only nft is there.
func (b *backend) usable(setting string) bool {
	if setting != "" && setting != "iptables" {
		return false
	}
	path, err := exec.LookPath("iptables")
	if err != nil {
		_, err := exec.LookPath("nft")
		return err != nil // no program at all: the kernel does without
	}
	st, err := os.Stat(path)
	if err != nil {
		return false
	}
	b.probe.Lock()
	defer b.probe.Unlock()
	if key := fmt.Sprint(path, st.Size(), st.ModTime()); key != b.probe.key {
		b.probe.key, b.probe.ok = key, isNFT(path)
	}
	return b.probe.ok
}

// isNFT asks iptables what it writes to.
func isNFT(path string) bool {
	cmd := exec.Command(path, "--version")
	cmd.WaitDelay = time.Second
	t := time.AfterFunc(5*time.Second, func() { _ = cmd.Process.Kill() })
	defer t.Stop()
	out, err := cmd.Output()
	return err == nil && strings.Contains(string(out), "nf_tables")
}

// chainName is how the plugins name a pod's chain: 28 characters.
func chainName(prefix, network, id string) string { return hashed("CNI-"+prefix, network, id, 28) }

// hashed is how the plugins name what belongs to a pod on a network.
func hashed(prefix, network, id string, length int) string {
	sum := sha512.Sum512([]byte(network + id))
	return (prefix + hex.EncodeToString(sum[:]))[:length]
}

// masquerade makes traffic that leaves a pod's network look like the host's:
//
//	POSTROUTING: -s POD -j CHAIN
//	CHAIN:       -d NETWORK -j ACCEPT
//	CHAIN:       ! -d MULTICAST -j MASQUERADE
func (b *backend) masquerade(ips []*types100.IPConfig, network, id string) error {
	n, letGo, err := b.sockets.hold()
	if err != nil {
		return err
	}
	defer letGo()
	chain, comment := chainName("", network, id), fmt.Sprintf("name: %q id: %q", network, id)
	for _, f := range []family{ipv4, ipv6} {
		var own []netip.Prefix
		for _, ip := range ips {
			a, _ := netip.AddrFromSlice(ip.Address.IP)
			bits, _ := ip.Address.Mask.Size()
			if a = a.Unmap(); a.IsValid() && a.Is4() == (f.proto == ipv4.proto) {
				own = append(own, netip.PrefixFrom(a, bits))
			}
		}
		if len(own) == 0 {
			continue
		}
		if err := n.settle(func() ([]message, error) { return f.masquerading(n, own, chain, comment) }); err != nil {
			return fmt.Errorf("masquerade network %s: %w", network, err)
		}
	}
	return nil
}

func (f family) masquerading(n *nft, own []netip.Prefix, chain, comment string) ([]message, error) {
	all, err := n.dropping(f, chain, "POSTROUTING") // what an ADD that failed has left
	if err != nil {
		return nil, err
	}
	fresh, err := n.missing(f, "POSTROUTING")
	all = append(append(all, fresh...), f.newChain(chain))
	for i, p := range own {
		all = append(all, f.add(chain, false, rule{}.address(f.dest, p, false).comment(comment).verdict(1, ""))) // NF_ACCEPT
		if i == 0 {
			all = append(all, f.add(chain, false, rule{}.address(f.dest, f.multicast, true).comment(comment).target("MASQUERADE", 0, f.masqueradeInfo())))
		}
		all = append(all, f.add("POSTROUTING", false, rule{}.address(f.source, netip.PrefixFrom(p.Addr(), p.Addr().BitLen()), false).comment(comment).jump(chain)))
	}
	return all, err
}

// masqueradeInfo is struct nf_nat_ipv4_multi_range_compat, whose first field is the
// number of ranges, and struct nf_nat_range.
func (f family) masqueradeInfo() []byte {
	if f.proto == ipv6.proto {
		return make([]byte, 40)
	}
	return native32(make([]byte, 24), 1)
}

func (b *backend) unmasquerade(network, id string) error {
	n, letGo, err := b.sockets.hold()
	if err != nil {
		return err
	}
	defer letGo()
	chain := chainName("", network, id)
	err = errors.Join(n.dropChain(ipv4, chain, "POSTROUTING"), n.dropChain(ipv6, chain, "POSTROUTING"))
	if err != nil {
		return fmt.Errorf("end masquerading of network %s: %w", network, err)
	}
	return nil
}
