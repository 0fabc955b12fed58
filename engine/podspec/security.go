package podspec

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"path/filepath"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/host/apparmor"
	"github.com/berthd/berth/host/seccomp"
)

// profile is a security profile, said in one way.
type profile struct {
	kind cri.SecurityProfile_ProfileType
	ref  string // path or name of a Localhost one
	none bool   // nobody said anything
}

// Words of the string fields that CRI had before it had SecurityProfile.
const (
	wordDefault  = "runtime/default"
	wordDocker   = "docker/default"
	wordNone     = "unconfined"
	wordLocal    = "localhost/"
	settingMoby  = "RuntimeDefault"
	defaultArmor = apparmor.Default
)

func profileOf(p *cri.SecurityProfile, old string) (profile, error) {
	if p != nil {
		ref := strings.TrimPrefix(p.GetLocalhostRef(), wordLocal)
		switch p.GetProfileType() {
		case cri.SecurityProfile_RuntimeDefault, cri.SecurityProfile_Unconfined:
			return profile{kind: p.GetProfileType()}, nil
		case cri.SecurityProfile_Localhost:
			if ref == "" {
				return profile{}, errs.New(errs.InvalidArgument, "a profile of type Localhost needs a localhost_ref")
			}
			return profile{kind: p.GetProfileType(), ref: ref}, nil
		}
		return profile{}, errs.New(errs.InvalidArgument, "profile type %d is not known", p.GetProfileType())
	}
	switch {
	case old == "":
		return profile{none: true}, nil
	case old == wordDefault || old == wordDocker:
		return profile{kind: cri.SecurityProfile_RuntimeDefault}, nil
	case old == wordNone:
		return profile{kind: cri.SecurityProfile_Unconfined}, nil
	case strings.HasPrefix(old, wordLocal) && len(old) > len(wordLocal):
		return profile{kind: cri.SecurityProfile_Localhost, ref: strings.TrimPrefix(old, wordLocal)}, nil
	}
	return profile{}, errs.New(errs.InvalidArgument, "profile %q is not one of runtime/default, unconfined and localhost/NAME", old)
}

// seccompOf is the seccomp profile of a container, with the setting for those that
// name none.
func seccompOf(s Settings, sec *cri.LinuxContainerSecurityContext) (profile, error) {
	if sec.GetPrivileged() {
		return profile{kind: cri.SecurityProfile_Unconfined}, nil
	}
	p, err := profileOf(sec.GetSeccomp(), sec.GetSeccompProfilePath())
	if err != nil || !p.none {
		return p, err
	}
	switch u := s.UnsetSeccomp; {
	case u == "" || strings.EqualFold(u, wordNone):
		return profile{kind: cri.SecurityProfile_Unconfined}, nil
	case strings.EqualFold(u, settingMoby) || u == wordDefault || u == wordDocker:
		return profile{kind: cri.SecurityProfile_RuntimeDefault}, nil
	default:
		return profile{kind: cri.SecurityProfile_Localhost, ref: strings.TrimPrefix(u, wordLocal)}, nil
	}
}

// SeccompFile is the file that holds the container's seccomp profile, or "" if it
// needs none.
func SeccompFile(s Settings, sec *cri.LinuxContainerSecurityContext) (string, error) {
	p, err := seccompOf(s, sec)
	if err != nil {
		return "", fmt.Errorf("seccomp: %w", err)
	}
	if p.ref != "" && !filepath.IsAbs(p.ref) {
		return "", errs.New(errs.InvalidArgument, "seccomp: the profile's path %q is not absolute", p.ref)
	}
	return p.ref, nil
}

func (b *building) seccomp() error {
	p, err := seccompOf(b.h.Settings, b.sec)
	if err != nil {
		return err
	}
	b.s.Linux.Seccomp = nil
	if p.kind == cri.SecurityProfile_Unconfined {
		return nil
	}
	if !b.host.Seccomp {
		if p.kind == cri.SecurityProfile_Localhost {
			return errs.New(errs.FailedPrecondition, "profile %s cannot be used: this kernel has no seccomp", p.ref)
		}
		b.host.warn("seccomp", "this kernel has no seccomp: the default profile is not applied")
		return nil
	}
	caps := b.s.Process.Capabilities.Bounding
	if p.kind == cri.SecurityProfile_RuntimeDefault {
		b.s.Linux.Seccomp, err = seccomp.Default(caps)
		return err
	}
	if b.s.Linux.Seccomp, err = seccomp.Parse(b.c.Seccomp, caps); err != nil {
		return fmt.Errorf("%s: %w", p.ref, err)
	}
	return nil
}

func (b *building) apparmor() error {
	b.s.Process.ApparmorProfile = ""
	p, err := profileOf(b.sec.GetApparmor(), b.sec.GetApparmorProfile())
	if err != nil {
		return err
	}
	on := b.host.AppArmor && !b.h.Settings.DisableAppArmor
	if p.kind == cri.SecurityProfile_Localhost {
		if !on {
			return errs.New(errs.FailedPrecondition, "profile %q cannot be used: AppArmor is not enabled here", p.ref)
		}
		if loaded, err := b.host.AppArmorProfile(p.ref); err != nil || !loaded {
			return errs.New(errs.FailedPrecondition, "profile %q is not loaded in the kernel (%v)", p.ref, err)
		}
		b.s.Process.ApparmorProfile = p.ref
		return nil
	}
	if !on || p.kind == cri.SecurityProfile_Unconfined || b.sec.GetPrivileged() {
		return nil
	}
	loaded, err := b.host.AppArmorProfile(defaultArmor)
	switch {
	case err == nil && loaded:
		b.s.Process.ApparmorProfile = defaultArmor
	case !p.none:
		return errs.New(errs.FailedPrecondition, "the default profile %s is not loaded and cannot be: %v", defaultArmor, err)
	default:
		b.host.warn("apparmor", "AppArmor is enabled and the profile "+defaultArmor+" cannot be loaded: containers that name no profile run without one: "+fmt.Sprint(err))
	}
	return nil
}

// Types of SELinux that the policy container-selinux defines.
const (
	seUser, seRole    = "system_u", "system_r"
	seProcess, seFile = "container_t", "container_file_t"
	sePrivileged      = "spc_t"
)

// selinux labels the process and its root file system. Containers of one pod have
// one level, so that they can share files.
func (b *building) selinux() error {
	b.s.Process.SelinuxLabel, b.s.Linux.MountLabel = "", ""
	o := b.sec.GetSelinuxOptions()
	if o == nil {
		o = b.pod.Config.GetLinux().GetSecurityContext().GetSelinuxOptions()
	}
	for _, part := range []string{o.GetUser(), o.GetRole(), o.GetType()} {
		if strings.ContainsAny(part, ": \t\n\x00") {
			return errs.New(errs.InvalidArgument, "%q is no part of a label", part)
		}
	}
	if strings.ContainsAny(o.GetLevel(), " \t\n\x00") {
		return errs.New(errs.InvalidArgument, "%q is no level", o.GetLevel())
	}
	if !b.host.SELinux || !b.h.Settings.SELinux {
		return nil
	}
	level := o.GetLevel()
	if level == "" {
		level = b.pod.MCS
	}
	if level == "" {
		level = MCS(b.pod.ID, b.h.Settings.SELinuxCategories)
	}
	typ := or(o.GetType(), seProcess)
	if b.sec.GetPrivileged() && o.GetType() == "" {
		typ = sePrivileged
	}
	user, role := or(o.GetUser(), seUser), or(o.GetRole(), seRole)
	b.s.Process.SelinuxLabel = strings.Join([]string{user, role, typ, level}, ":")
	if !b.sec.GetPrivileged() {
		b.s.Linux.MountLabel = strings.Join([]string{user, "object_r", seFile, level}, ":")
	}
	return nil
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// MCS is the SELinux level of a pod: two categories out of so many, derived from its
// id.
func MCS(id string, categories int) string {
	n := uint32(max(categories, 2))
	sum := sha256.Sum256([]byte(id))
	a, b := binary.BigEndian.Uint32(sum[:])%n, binary.BigEndian.Uint32(sum[4:])%(n-1)
	if b >= a {
		b++ // two different ones
	}
	return fmt.Sprintf("s0:c%d,c%d", min(a, b), max(a, b))
}
