// Package cdi puts devices of the Container Device Interface into OCI specs: the
// vendors' files in the CDI directories say what a device is made of. The files are
// read when a container asks for a device, and at no other time.
package cdi

import (
	"errors"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"

	"github.com/berthd/berth/base/errs"
)

// DefaultDirs are where vendors put their files; later ones win.
var DefaultDirs = []string{"/etc/cdi", "/var/run/cdi"}

// Inject applies the devices with these qualified names (vendor/class=name) to s.
func Inject(s *specs.Spec, dirs, names []string) error {
	if len(names) == 0 {
		return nil
	}
	cache, err := cdi.NewCache(cdi.WithSpecDirs(dirs...), cdi.WithAutoRefresh(false))
	if err != nil {
		return errs.New(errs.FailedPrecondition, "CDI directories %s: %w", strings.Join(dirs, ", "), err)
	}
	missing, err := cache.InjectDevices(s, names...)
	if err == nil {
		return nil
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		// A file that cannot be read may be why a device is missing.
		var broken []error
		for file, all := range cache.GetErrors() {
			broken = append(broken, errs.New(errs.FailedPrecondition, "%s: %w", file, errors.Join(all...)))
		}
		return errors.Join(append([]error{errs.New(errs.NotFound, "no file in %s describes CDI device %s", strings.Join(dirs, ", "), strings.Join(missing, ", "))}, broken...)...)
	}
	return errs.New(errs.InvalidArgument, "CDI: %w", err)
}

// FromAnnotations lists the devices that annotations with the prefix cdi.k8s.io/
// ask for.
func FromAnnotations(all map[string]string) ([]string, error) {
	_, names, err := cdi.ParseAnnotations(all)
	if err != nil {
		return nil, errs.New(errs.InvalidArgument, "CDI annotation: %w", err)
	}
	slices.Sort(names) // a map has no order
	return slices.Compact(names), nil
}
