package container

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/base/errs"
)

// parsePort reads -p: [[IP:][HOST]:]PORT[/tcp|udp|sctp], where both ports may be
// ranges of the same length. A host port that is left out is chosen here.
func parsePort(s string) ([]*cri.PortMapping, error) {
	bad := func(why string) error {
		return errs.New(errs.InvalidArgument, "-p %q: %s; write [[IP:]HOSTPORT:]PORT[/udp]", s, why)
	}
	rest, protocol, _ := strings.Cut(s, "/")
	proto, known := map[string]cri.Protocol{"": cri.Protocol_TCP, "tcp": cri.Protocol_TCP, "udp": cri.Protocol_UDP, "sctp": cri.Protocol_SCTP}[protocol]
	if !known {
		return nil, bad("protocol " + protocol + " is not known")
	}
	target, host, ip := rest, "", ""
	if i := strings.LastIndexByte(rest, ':'); i >= 0 {
		host, target = rest[:i], rest[i+1:]
		if j := strings.LastIndexByte(host, ':'); j >= 0 {
			ip, host = strings.Trim(host[:j], "[]"), host[j+1:]
			if net.ParseIP(ip) == nil {
				return nil, bad(ip + " is no address")
			}
		}
	}
	first, last, err := portRange(target)
	if err != nil {
		return nil, bad(err.Error())
	}
	hostFirst, hostLast := 0, last-first
	if host != "" {
		if hostFirst, hostLast, err = portRange(host); err != nil {
			return nil, bad(err.Error())
		}
	}
	if hostLast-hostFirst != last-first {
		return nil, bad("the two ranges differ in length")
	}
	var out []*cri.PortMapping
	for i := 0; i <= last-first; i++ {
		p := hostFirst + i
		if host == "" {
			if p, err = freePort(proto, ip); err != nil {
				return nil, err
			}
		}
		out = append(out, &cri.PortMapping{Protocol: proto, ContainerPort: int32(first + i), HostPort: int32(p), HostIp: ip})
	}
	return out, nil
}

func portRange(s string) (first, last int, err error) {
	a, b, ranged := strings.Cut(s, "-")
	if first, err = port(a); err != nil {
		return 0, 0, err
	}
	last = first
	if ranged {
		last, err = port(b)
	}
	if err == nil && last < first {
		err = fmt.Errorf("range %s ends before it begins", s)
	}
	return first, last, err
}

func port(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is no port", s)
	}
	return int(n), nil
}

// freePort asks the kernel for a port that nobody uses now.
func freePort(proto cri.Protocol, ip string) (int, error) {
	if proto == cri.Protocol_UDP {
		c, err := net.ListenPacket("udp", net.JoinHostPort(ip, "0"))
		if err != nil {
			return 0, err
		}
		return c.LocalAddr().(*net.UDPAddr).Port, c.Close()
	}
	l, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}

// formatPorts is what the label of ports keeps: [IP:]HOST:PORT/PROTOCOL with commas.
func formatPorts(all []*cri.PortMapping) string {
	var out []string
	for _, p := range all {
		s := fmt.Sprintf("%d:%d/%s", p.GetHostPort(), p.GetContainerPort(), strings.ToLower(p.GetProtocol().String()))
		if ip := p.GetHostIp(); ip != "" {
			s = net.JoinHostPort(ip, s)
			if !strings.Contains(ip, ":") {
				s = ip + ":" + s[len(ip)+1:]
			}
		}
		out = append(out, s)
	}
	return strings.Join(out, ",")
}
