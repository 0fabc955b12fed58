package podspec

import (
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/base/errs"
)

// Annotations that put containers into classes of RDT and of block I/O: of the
// container by its own annotation, of the pod for one container by name, of the pod
// for all.
const (
	annotationRDT     = "io.kubernetes.cri.rdt-class"
	annotationBlockIO = "io.kubernetes.cri.blockio-class"
	domainRDT         = "rdt.resources.beta.kubernetes.io/"
	domainBlockIO     = "blockio.resources.beta.kubernetes.io/"
)

// classOf is the class that the annotations name, or "".
func (b *building) classOf(own, domain string) string {
	if c, ok := b.c.Config.GetAnnotations()[own]; ok {
		return c
	}
	pod := b.pod.Config.GetAnnotations()
	if c, ok := pod[domain+"container."+b.c.Config.GetMetadata().GetName()]; ok {
		return c
	}
	return pod[domain+"pod"]
}

func (b *building) classes() error {
	if class := b.classOf(annotationRDT, domainRDT); class != "" {
		if err := b.setRDT(class); err != nil {
			return err
		}
	}
	if class := b.classOf(annotationBlockIO, domainBlockIO); class != "" {
		return b.setBlockIO(class)
	}
	return nil
}

// setRDT puts the container into a class of resctrl.
func (b *building) setRDT(class string) error {
	if b.host.RDT == nil {
		if b.h.Settings.IgnoreRDTDisabled {
			return nil
		}
		return errs.New(errs.FailedPrecondition, "RDT class %q: RDT is not enabled here (no resctrl file system)", class)
	}
	if !b.host.RDT(class) {
		return errs.New(errs.InvalidArgument, "RDT class %q does not exist", class)
	}
	b.s.Linux.IntelRdt = &specs.LinuxIntelRdt{ClosID: class}
	return nil
}

// setBlockIO gives the container the parameters of a class.
func (b *building) setBlockIO(class string) error {
	if b.host.BlockIO == nil {
		if b.h.Settings.IgnoreBlockIODisabled {
			return nil
		}
		return errs.New(errs.FailedPrecondition, "block I/O class %q: no classes are configured", class)
	}
	io, err := b.host.BlockIO(class)
	if err != nil {
		return err
	}
	b.s.Linux.Resources.BlockIO = io
	return nil
}
