package podspec

import (
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/host/facts"
)

// capsDefault are what a container has that asks for nothing, as with Docker.
var capsDefault = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP",
	"CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// capabilities of the process. Inheritable ones are only those that are ambient:
// any other would come back by a file's capabilities (CVE-2022-24769).
func (b *building) capabilities() error {
	if b.sec.GetPrivileged() {
		all := slices.Clone(b.host.Caps)
		b.s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all}
		return nil
	}
	start := capsDefault
	if b.h.BaseSpec != nil && b.s.Process.Capabilities != nil {
		start = b.s.Process.Capabilities.Bounding
	}
	set := slices.DeleteFunc(slices.Clone(start), func(c string) bool { return !slices.Contains(b.host.Caps, c) })
	set, ambient, err := b.asked(set, b.sec.GetCapabilities())
	if err != nil {
		return err
	}
	caps := &specs.LinuxCapabilities{Bounding: set, Effective: set, Permitted: set}
	if len(ambient) > 0 {
		caps.Inheritable, caps.Ambient = ambient, ambient
	}
	b.s.Process.Capabilities = caps
	return nil
}

// asked applies what is added and dropped: first ALL, then names, drops last, so
// that "drop ALL, add X" is X and "add ALL, drop X" is all but X.
func (b *building) asked(set []string, c *cri.Capability) (all, ambient []string, err error) {
	for _, n := range c.GetAddCapabilities() {
		if strings.EqualFold(n, "ALL") {
			set = slices.Clone(b.host.Caps)
		}
	}
	for _, n := range c.GetDropCapabilities() {
		if strings.EqualFold(n, "ALL") {
			set = nil
		}
	}
	add := func(n string) error {
		full, err := capName(n)
		if err != nil {
			return err
		}
		if !slices.Contains(b.host.Caps, full) {
			return errs.New(errs.InvalidArgument, "%s cannot be given: the daemon does not have it", full)
		}
		if !slices.Contains(set, full) {
			set = append(set, full)
		}
		return nil
	}
	for _, n := range c.GetAddCapabilities() {
		if strings.EqualFold(n, "ALL") {
			continue
		}
		if err := add(n); err != nil {
			return nil, nil, err
		}
	}
	for _, n := range c.GetAddAmbientCapabilities() {
		if strings.EqualFold(n, "ALL") {
			ambient = slices.Clone(b.host.Caps)
			set = slices.Clone(b.host.Caps)
			continue
		}
		if err := add(n); err != nil {
			return nil, nil, err
		}
		if full, _ := capName(n); !slices.Contains(ambient, full) {
			ambient = append(ambient, full)
		}
	}
	for _, n := range c.GetDropCapabilities() {
		if strings.EqualFold(n, "ALL") {
			continue
		}
		full, err := capName(n)
		if err != nil {
			return nil, nil, err
		}
		is := func(c string) bool { return c == full }
		set, ambient = slices.DeleteFunc(set, is), slices.DeleteFunc(ambient, is)
	}
	return set, ambient, nil
}

// capName is the full name of a capability: CRI leaves CAP_ out.
func capName(n string) (string, error) {
	full := strings.ToUpper(n)
	if !strings.HasPrefix(full, "CAP_") {
		full = "CAP_" + full
	}
	if !slices.Contains(facts.CapNames(), full) {
		return "", errs.New(errs.InvalidArgument, "there is no capability %q", n)
	}
	return full, nil
}
