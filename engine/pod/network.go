package pod

import (
	"context"
	"strings"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/engine/podspec"
	"github.com/berthd/berth/host/cni"
)

const (
	annotationIngress = "kubernetes.io/ingress-bandwidth"
	annotationEgress  = "kubernetes.io/egress-bandwidth"
)

// networkRequest is what a pod wants of its networks (protocols.md 3.3).
func (p *Pods) networkRequest(pod *Pod, h *Handler, path string) (cni.Request, error) {
	c := pod.Config
	m := c.GetMetadata()
	r := cni.Request{
		ContainerID: pod.ID, NetNS: path, PodName: m.GetName(), PodNamespace: m.GetNamespace(), PodUID: m.GetUid(), Annotations: c.GetAnnotations(),
	}
	for _, pm := range c.GetPortMappings() {
		if pm.GetHostPort() != 0 {
			r.Ports = append(r.Ports, cni.PortMapping{HostPort: pm.GetHostPort(), ContainerPort: pm.GetContainerPort(), Protocol: strings.ToLower(pm.GetProtocol().String()), HostIP: pm.GetHostIp()})
		}
	}
	for _, b := range []struct {
		key string
		to  func(*cni.Bandwidth) *uint64
	}{{annotationIngress, func(b *cni.Bandwidth) *uint64 { return &b.Ingress }}, {annotationEgress, func(b *cni.Bandwidth) *uint64 { return &b.Egress }}} {
		text := c.GetAnnotations()[b.key]
		if text == "" {
			continue
		}
		rate, err := cni.ParseRate(text)
		if err != nil {
			return r, errs.New(errs.InvalidArgument, "annotation %s: %w", b.key, err)
		}
		if r.Bandwidth == nil {
			r.Bandwidth = &cni.Bandwidth{}
		}
		*b.to(r.Bandwidth) = rate
	}
	if d := c.GetDnsConfig(); d != nil {
		r.DNS = &cni.DNS{Servers: d.GetServers(), Searches: d.GetSearches(), Options: d.GetOptions()}
	}
	var err error
	if r.CgroupPath, err = podspec.CgroupPath(h.SystemdCgroup, c.GetLinux().GetCgroupParent(), pod.ID); err != nil {
		return r, err
	}
	if names := c.GetAnnotations()[annotationNetwork]; names != "" {
		for _, n := range strings.Split(names, ",") {
			r.Networks = append(r.Networks, cni.Wanted{Name: n})
		}
	}
	return r, nil
}

// detach gives back the pod's addresses; the caller removes its namespaces right
// afterwards. It needs nothing but the row, and may be called again.
func (p *Pods) detach(ctx context.Context, pod *Pod) error {
	if len(pod.Plan) == 0 {
		return nil
	}
	saved, err := cni.DecodeSaved(pod.Plan)
	if err != nil {
		return err
	}
	nets := p.cfg.Networks
	if h := p.handlers()[pod.Handler]; h != nil {
		nets = p.networks(h)
	}
	return nets.End(ctx, saved)
}

// Attachments lists every attachment that a row speaks of, for the collection of
// leftovers.
func (p *Pods) Attachments() []cni.Attachment {
	p.mu.RLock()
	defer p.mu.RUnlock()
	var out []cni.Attachment
	for _, pod := range p.mu.pods {
		if len(pod.Plan) == 0 {
			continue
		}
		saved, err := cni.DecodeSaved(pod.Plan)
		if err != nil {
			continue
		}
		for _, a := range saved.Attachments {
			out = append(out, cni.Attachment{Network: a.Network, ContainerID: saved.ContainerID, IfName: a.IfName})
		}
	}
	return out
}
