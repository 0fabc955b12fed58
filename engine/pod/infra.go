package pod

import (
	"context"

	"github.com/berthd/berth/base/failpoint"
	"github.com/berthd/berth/engine/podspec"
	"github.com/berthd/berth/engine/sandbox"
)

// startInfra runs the built-in container of a pod that needs one. That it has one
// is in its row before.
func (p *Pods) startInfra(ctx context.Context, pod *Pod, h *Handler) (*Pod, error) {
	next := *pod
	next.Infra = true
	pod, err := p.putPod(ctx, next)
	if err != nil {
		return &next, err
	}
	failpoint.Here("pod.infra.written")
	sp, err := podspec.ForSandbox(p.cfg.Host, h.Handler, p.specPod(pod), sandbox.Args)
	if err != nil {
		return pod, err
	}
	meta, err := sandboxExtension(pod)
	if err != nil {
		return pod, err
	}
	pid, err := p.cfg.Sandbox.Start(ctx, p.leased(pod.Namespace, pod.ID), sandbox.Infra{
		ID: pod.ID, Runtime: h.Runtime, Options: h.Options, Spec: sp, Labels: sandboxLabels(pod.Config), Extra: meta,
	})
	if err != nil {
		return pod, err
	}
	up := *pod
	up.InfraPid = int(pid)
	return &up, nil
}
