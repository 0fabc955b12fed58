package registry

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"syscall"

	"github.com/berthd/berth/base/errs"
)

// reach says how close to this machine an address is. A registry may send us on
// only to places that are not closer than itself: else it could make the daemon
// ask services that trust their neighbours (cloud metadata, other daemons).
type reach uint8

const (
	public    reach = iota // also what is not known
	private                // RFC 1918, RFC 6598, unique local
	loopback               // this machine
	linkLocal              // this link: where cloud metadata lives
)

func (r reach) String() string { return [...]string{"public", "private", "loopback", "link-local"}[r] }

var (
	sharedSpace = netip.MustParsePrefix("100.64.0.0/10")
	thisNetwork = netip.MustParsePrefix("0.0.0.0/8")
	nat64       = netip.MustParsePrefix("64:ff9b::/96")
	// metadata services that are not in link-local space: AWS over IPv6, Alibaba.
	metadata = []netip.Addr{netip.MustParseAddr("fd00:ec2::254"), netip.MustParseAddr("100.100.100.200")}
)

// reachOf classifies an address; one that embeds an IPv4 address counts as that.
func reachOf(ip netip.Addr) reach {
	ip = ip.Unmap().WithZone("")
	if nat64.Contains(ip) {
		b := ip.As16()
		ip = netip.AddrFrom4([4]byte(b[12:]))
	}
	for _, m := range metadata {
		if ip == m {
			return linkLocal
		}
	}
	switch {
	case ip.IsLinkLocalUnicast(), ip.IsMulticast():
		return linkLocal
	case ip.IsLoopback(), ip.IsUnspecified(), thisNetwork.Contains(ip):
		return loopback
	case ip.IsPrivate(), sharedSpace.Contains(ip):
		return private
	}
	return public
}

// guard is a rule for connections that a registry asked for.
type guard struct {
	on   bool
	from reach // where the registry is
	// strict refuses private addresses to a public registry too: for token
	// requests, not for blobs (private links of cloud storage are common).
	strict bool
}

// allows says whether a connection to ip may be made.
func (g guard) allows(ip netip.Addr) error {
	to := reachOf(ip)
	if !g.on || to <= g.from || to == private && !g.strict {
		return nil
	}
	return errs.New(errs.PermissionDenied, "refused to go to the %s address %s on the word of a registry with a %s address", to, ip, g.from)
}

// allowsHost checks what can be told from a URL's host without DNS, for requests
// through a proxy, and refuses spellings of addresses that resolvers disagree on.
func (g guard) allowsHost(host string) error {
	name := strings.TrimSuffix(hostname(host), ".")
	if ip, err := netip.ParseAddr(name); err == nil {
		return g.allows(ip)
	}
	if strings.EqualFold(name, "localhost") || strings.HasSuffix(strings.ToLower(name), ".localhost") {
		return g.allows(netip.AddrFrom4([4]byte{127, 0, 0, 1}))
	}
	if numericHost.MatchString(name) {
		return errs.New(errs.PermissionDenied, "refused to go to %q: it is neither a name nor a plain address", clean(name, 80))
	}
	return nil
}

// numericHost matches hosts whose last label is a number (WHATWG URL, "ends in a
// number"): decimal, octal and hex spellings of IPv4 addresses.
var numericHost = regexp.MustCompile(`(?i)(^|\.)(0x[0-9a-f]*|[0-9]+)$`)

// control is a net.Dialer's ControlContext: it sees the very address that will be
// connected to, so that no second DNS answer can differ.
func (g guard) control(_ context.Context, _, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("address %q: %w", address, err)
	}
	return g.allows(ap.Addr())
}

func addrOf(a net.Addr) (netip.Addr, bool) {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}, false
	}
	ip, ok := netip.AddrFromSlice(t.IP)
	return ip, ok
}
