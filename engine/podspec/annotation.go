package podspec

import (
	"path"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/base/errs"
)

// Annotations of specs by which runtimes and hooks know what they run
// (protocols.md 3.4).
const (
	annotationType      = "io.kubernetes.cri.container-type"
	annotationPodID     = "io.kubernetes.cri.sandbox-id"
	annotationPodName   = "io.kubernetes.cri.sandbox-name"
	annotationPodNS     = "io.kubernetes.cri.sandbox-namespace"
	annotationPodUID    = "io.kubernetes.cri.sandbox-uid"
	annotationLogDir    = "io.kubernetes.cri.sandbox-log-directory"
	annotationCPUPeriod = "io.kubernetes.cri.sandbox-cpu-period"
	annotationCPUQuota  = "io.kubernetes.cri.sandbox-cpu-quota"
	annotationCPUShares = "io.kubernetes.cri.sandbox-cpu-shares"
	annotationMemory    = "io.kubernetes.cri.sandbox-memory"
	annotationName      = "io.kubernetes.cri.container-name"
	annotationImage     = "io.kubernetes.cri.image-name"
	annotationUntrusted = "io.kubernetes.cri.untrusted-workload"
)

const typeContainer, typeSandbox = "container", "sandbox"

func (b *building) annotations() error {
	all, err := b.podAnnotations(typeContainer)
	if err != nil {
		return err
	}
	all[annotationName] = b.c.Config.GetMetadata().GetName()
	if b.c.ImageName != "" {
		all[annotationImage] = b.c.ImageName
	}
	if err := pass(all, b.h.ContainerAnnotations, b.c.Config.GetAnnotations()); err != nil {
		return err
	}
	b.annotate(all)
	return nil
}

// annotate puts annotations into the spec; the base spec's stay.
func (b *building) annotate(all map[string]string) {
	if b.s.Annotations == nil {
		b.s.Annotations = map[string]string{}
	}
	for k, v := range all {
		b.s.Annotations[k] = v
	}
}

// podAnnotations are those of every spec of a pod. Ours come last: nobody passes
// another pod's id through.
func (b *building) podAnnotations(typ string) (map[string]string, error) {
	c := b.pod.Config
	out := map[string]string{}
	if err := pass(out, b.h.PodAnnotations, c.GetAnnotations()); err != nil {
		return nil, err
	}
	m := c.GetMetadata()
	out[annotationType], out[annotationPodID] = typ, b.pod.ID
	out[annotationPodName], out[annotationPodNS], out[annotationPodUID] = m.GetName(), m.GetNamespace(), m.GetUid()
	if typ != typeSandbox {
		return out, nil
	}
	if d := c.GetLogDirectory(); d != "" {
		out[annotationLogDir] = d
	}
	if r := c.GetLinux().GetResources(); r != nil {
		sumInto(out, r, c.GetLinux().GetOverhead())
	}
	return out, nil
}

// sumInto says how much a pod needs, with what its runtime needs beside it: a
// runtime that starts a machine for the pod gives it so much.
func sumInto(out map[string]string, r, over *cri.LinuxContainerResources) {
	out[annotationCPUPeriod] = number(r.GetCpuPeriod())
	out[annotationCPUQuota] = number(r.GetCpuQuota() + over.GetCpuQuota())
	out[annotationCPUShares] = number(r.GetCpuShares() + over.GetCpuShares())
	out[annotationMemory] = number(r.GetMemoryLimitInBytes() + over.GetMemoryLimitInBytes())
}

// pass copies the annotations that match one of the patterns (path.Match). A
// pattern's * stops at a slash, so "io.kata.*" is not all there is.
func pass(to map[string]string, patterns []string, from map[string]string) error {
	for _, p := range patterns {
		for k, v := range from {
			ok, err := path.Match(p, k)
			if err != nil {
				return errs.New(errs.InvalidArgument, "pattern %q of the configuration: %w", p, err)
			}
			if ok && !strings.HasPrefix(k, "io.kubernetes.cri.") {
				to[k] = v
			}
		}
	}
	return nil
}
