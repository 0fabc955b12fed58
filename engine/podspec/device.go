package podspec

import (
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/host/cdi"
)

// devices are those of the config, and for a privileged container all the host has.
func (b *building) devices() error {
	if b.sec.GetPrivileged() {
		return b.hostDevices()
	}
	for _, d := range b.c.Config.GetDevices() {
		if err := b.askedDevice(d); err != nil {
			return errs.New(kindOf(err), "%q: %w", d.GetHostPath(), err)
		}
	}
	return nil
}

func (b *building) hostDevices() error {
	if !b.h.NoHostDevices {
		all, err := b.host.Devices("/dev")
		if err != nil {
			return errs.New(kindOf(err), "of the host: %w", err)
		}
		for _, d := range all {
			b.putDevice(d)
		}
	}
	for _, d := range b.c.Config.GetDevices() {
		if err := b.askedDevice(d); err != nil {
			return errs.New(kindOf(err), "%q: %w", d.GetHostPath(), err)
		}
	}
	if !b.h.NoHostDevices || b.h.AllowAllDevices {
		b.s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
	}
	return nil
}

// askedDevice adds one device, or all below a directory.
func (b *building) askedDevice(d *cri.Device) error {
	access := or(d.GetPermissions(), "rwm")
	if strings.Trim(access, "rwm") != "" || len(access) > 3 {
		return errs.New(errs.InvalidArgument, "permissions %q are not made of r, w and m", access)
	}
	src := d.GetHostPath()
	if !path.IsAbs(src) {
		return errs.New(errs.InvalidArgument, "the path is not absolute")
	}
	dst := or(d.GetContainerPath(), src)
	if !path.IsAbs(dst) {
		return errs.New(errs.InvalidArgument, "container_path %q is not absolute", dst)
	}
	if !b.host.IsDir(src) {
		dev, err := b.host.Device(src)
		if err != nil {
			return errs.New(errs.InvalidArgument, "%w", err)
		}
		b.allowDevice(dev, path.Clean(dst), access)
		return nil
	}
	all, err := b.host.Devices(src)
	if err != nil {
		return errs.New(errs.InvalidArgument, "%w", err)
	}
	for _, dev := range all {
		b.allowDevice(dev, path.Join(dst, strings.TrimPrefix(dev.Path, path.Clean(src))), access)
	}
	return nil
}

func (b *building) allowDevice(d specs.LinuxDevice, at, access string) {
	d.Path = at
	if b.h.Settings.DeviceOwnership {
		uid, gid := b.c.User.UID, b.c.User.GID
		d.UID, d.GID = &uid, &gid
	}
	b.putDevice(d)
	b.s.Linux.Resources.Devices = append(b.s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: d.Type, Major: &d.Major, Minor: &d.Minor, Access: access})
}

func (b *building) putDevice(d specs.LinuxDevice) {
	b.s.Linux.Devices = slices.DeleteFunc(b.s.Linux.Devices, func(o specs.LinuxDevice) bool { return o.Path == d.Path })
	b.s.Linux.Devices = append(b.s.Linux.Devices, d)
}

// cdi adds the devices that the config or its annotations name by the Container
// Device Interface.
func (b *building) cdi() error {
	var names []string
	for _, d := range b.c.Config.GetCDIDevices() {
		names = append(names, d.GetName())
	}
	more, err := cdi.FromAnnotations(b.c.Config.GetAnnotations())
	if err != nil {
		return err
	}
	for _, n := range more {
		if !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	if len(names) == 0 {
		return nil
	}
	if !b.h.Settings.CDI || b.host.CDI == nil {
		return errs.New(errs.FailedPrecondition, "%s: CDI is disabled (enable_cdi)", strings.Join(names, ", "))
	}
	return b.host.CDI(b.s, b.h.Settings.CDIDirs, names)
}
