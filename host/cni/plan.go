package cni

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"

	"github.com/containernetworking/cni/pkg/utils"

	"github.com/berthd/berth/base/errs"
)

// Request is what a pod wants of its networks.
type Request struct {
	ContainerID  string // the pod's id
	NetNS        string // path
	PodName      string
	PodNamespace string
	PodUID       string
	Annotations  map[string]string
	Ports        []PortMapping
	Bandwidth    *Bandwidth
	DNS          *DNS
	CgroupPath   string
	Networks     []Wanted // none: the default ones
}

// Wanted is a network that is asked for by name.
type Wanted struct {
	Name   string
	IfName string   // "": the next free of eth0, eth1, …
	IPs    []string // addresses to ask for, with or without prefix length; capability "ips"
	MAC    string   // capability "mac"
}

// PortMapping is an entry of capability "portMappings" (CNI CONVENTIONS.md).
type PortMapping struct {
	HostPort      int32  `json:"hostPort"`
	ContainerPort int32  `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP,omitempty"`
}

// Bandwidth is capability "bandwidth": bits a second and bits; 0 means no limit.
type Bandwidth struct {
	Ingress      uint64 `json:"ingressRate"`
	IngressBurst uint64 `json:"ingressBurst"`
	Egress       uint64 `json:"egressRate"`
	EgressBurst  uint64 `json:"egressBurst"`
}

// burst is the most that the kernel's token bucket takes, in bits.
const burst = 1<<32 - 1

// DNS is capability "dns".
type DNS struct {
	Servers  []string `json:"servers"`
	Searches []string `json:"searches"`
	Options  []string `json:"options"`
}

// Saved is everything that undoing an attachment needs, and what came of it. It goes
// into the pod's row before the ADD; the ADD fills in the results.
type Saved struct {
	ContainerID  string                     `json:"containerID"`
	NetNS        string                     `json:"netns"`
	Args         [][2]string                `json:"args,omitempty"`
	Capabilities map[string]json.RawMessage `json:"capabilities,omitempty"`
	Attachments  []Attached                 `json:"attachments"`
}

// Attached is one network of a pod.
type Attached struct {
	Network string `json:"network"`
	IfName  string `json:"ifName"`
	// Config is the network's configuration as it was when the pod was planned.
	Config json.RawMessage `json:"config"`
	// Capabilities are those of this network alone.
	Capabilities map[string]json.RawMessage `json:"capabilities,omitempty"`
	// Result is the last plugin's, in the configuration's version; nil before an ADD
	// has gone well.
	Result json.RawMessage `json:"result,omitempty"`
}

// Encode gives the form in which a row keeps it.
func (s Saved) Encode() ([]byte, error) { return json.Marshal(s) }

// DecodeSaved reads what Encode wrote.
func DecodeSaved(b []byte) (Saved, error) {
	var s Saved
	if err := json.Unmarshal(b, &s); err != nil {
		return s, errs.New(errs.DataLoss, "plan of a pod's networks: %v", err)
	}
	return s, nil
}

// Plan chooses the networks and interface names of a pod. It changes nothing.
func (n *Networks) Plan(r Request) (Saved, error) {
	if err := utils.ValidateContainerID(r.ContainerID); err != nil {
		return Saved{}, errs.New(errs.InvalidArgument, "pod id: %w", err)
	}
	s := Saved{ContainerID: r.ContainerID, NetNS: r.NetNS, Args: args(r)}
	var err error
	if s.Capabilities, err = capabilities(r); err != nil {
		return s, err
	}
	f := n.current()
	if len(r.Networks) == 0 {
		list := n.defaults(f)
		if len(list) == 0 {
			return s, errs.New(errs.FailedPrecondition, "%s: put a CNI configuration file there", f.complaint(n.cfg.Dir))
		}
		for i, w := range list {
			s.Attachments = append(s.Attachments, Attached{Network: w.list.Name, IfName: fmt.Sprintf("eth%d", i), Config: w.raw})
		}
		return s, n.programs(s)
	}
	if err := s.wanted(r.Networks, f, n.cfg.Dir); err != nil {
		return s, err
	}
	return s, n.programs(s)
}

// programs reports a plugin of a plan that has no program here. It is better not to
// begin: a DEL would lack it too.
func (n *Networks) programs(s Saved) error {
	for _, a := range s.Attachments {
		l, err := a.list()
		if err != nil {
			return err
		}
		for _, raw := range l.Plugins {
			if err := n.have(a.Network, pluginType(raw), raw); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Saved) wanted(all []Wanted, f folder, dir string) error {
	used := map[string]bool{"lo": true}
	for _, w := range all {
		if w.IfName != "" && used[w.IfName] {
			return errs.New(errs.InvalidArgument, "interface %s is asked for twice", w.IfName)
		}
		used[w.IfName] = true
	}
	for _, w := range all {
		a := Attached{Network: w.Name, IfName: w.IfName}
		for i := 0; a.IfName == ""; i++ {
			if name := fmt.Sprintf("eth%d", i); !used[name] {
				a.IfName, used[name] = name, true
			}
		}
		if err := utils.ValidateInterfaceName(a.IfName); err != nil {
			return errs.New(errs.InvalidArgument, "interface name: %w", err)
		}
		for _, have := range f.networks {
			if have.list.Name == w.Name {
				a.Config = have.raw
			}
		}
		if a.Config == nil {
			return errs.New(errs.NotFound, "network %q is not configured in %s; there are: %s%s", w.Name, dir, f.names(), after("; ", f.complaint(dir)))
		}
		if err := a.own(w); err != nil {
			return err
		}
		s.Attachments = append(s.Attachments, a)
	}
	return nil
}

// own sets the capabilities that a wanted network has for itself.
func (a *Attached) own(w Wanted) error {
	for _, ip := range w.IPs {
		if _, err := netip.ParsePrefix(ip); err != nil {
			if _, err := netip.ParseAddr(ip); err != nil {
				return errs.New(errs.InvalidArgument, "address %q of network %s: %w", ip, w.Name, err)
			}
		}
	}
	a.Capabilities = map[string]json.RawMessage{}
	return put(a.Capabilities, map[string]any{"ips": given(w.IPs, len(w.IPs) > 0), "mac": given(w.MAC, w.MAC != "")})
}

func (f *folder) names() string {
	var out []string
	for _, w := range f.networks {
		out = append(out, w.list.Name)
	}
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(out, ", ")
}

func after(sep, s string) string {
	if s == "" {
		return ""
	}
	return sep + s
}

// args are CNI_ARGS. A value cannot hold the separator: what has one is left out,
// rather than let a pod's name add arguments.
func args(r Request) [][2]string {
	out := [][2]string{{"IgnoreUnknown", "1"}}
	for _, a := range [][2]string{
		{"K8S_POD_NAMESPACE", r.PodNamespace}, {"K8S_POD_NAME", r.PodName}, {"K8S_POD_INFRA_CONTAINER_ID", r.ContainerID}, {"K8S_POD_UID", r.PodUID},
	} {
		if a[1] != "" && !strings.ContainsAny(a[1], ";=\x00") {
			out = append(out, a)
		}
	}
	return out
}

// capabilities are what plugins that ask for them get (CNI CONVENTIONS.md, "Dynamic
// plugin specific fields").
func capabilities(r Request) (map[string]json.RawMessage, error) {
	for _, p := range r.Ports {
		if p.HostPort < 1 || p.HostPort > 65535 || p.ContainerPort < 1 || p.ContainerPort > 65535 {
			return nil, errs.New(errs.InvalidArgument, "port mapping %d to %d: ports are 1 to 65535", p.HostPort, p.ContainerPort)
		}
		if _, err := netip.ParseAddr(p.HostIP); p.HostIP != "" && err != nil {
			return nil, errs.New(errs.InvalidArgument, "port mapping %d: host address %q: %w", p.HostPort, p.HostIP, err)
		}
	}
	var b *Bandwidth
	if r.Bandwidth != nil {
		c := *r.Bandwidth
		if c.Ingress > 0 && c.IngressBurst == 0 {
			c.IngressBurst = burst
		}
		if c.Egress > 0 && c.EgressBurst == 0 {
			c.EgressBurst = burst
		}
		b = &c
	}
	out := map[string]json.RawMessage{}
	err := put(out, map[string]any{
		"portMappings": given(r.Ports, len(r.Ports) > 0), "bandwidth": given(b, b != nil), "dns": given(r.DNS, r.DNS != nil),
		"cgroupPath": given(r.CgroupPath, r.CgroupPath != ""), "io.kubernetes.cri.pod-annotations": given(r.Annotations, len(r.Annotations) > 0),
	})
	return out, err
}

func given(v any, ok bool) any {
	if !ok {
		return nil
	}
	return v
}

func put(to map[string]json.RawMessage, all map[string]any) error {
	for k, v := range all {
		if v == nil {
			continue
		}
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		to[k] = b
	}
	return nil
}
