package wire

// The messages of a shim's start: containerd.runtime.bootstrap.v1,
// containerd.runc.v1 and containerd.types.RuntimeInfo.

// BootstrapParams is what containerd 2.3 and later write to the stdin of `start`.
type BootstrapParams struct {
	InstanceID   string
	Namespace    string
	LogLevel     int32 // lower is more; -4 is debug
	TTRPCAddress string
	GRPCAddress  string
	Extensions   []Any
	SocketDir    string
}

// Decode reads p from b.
func (p *BootstrapParams) Decode(b []byte) error {
	return fields(b, func(f field) error {
		switch f.num {
		case 1:
			return f.text(&p.InstanceID)
		case 2:
			return f.text(&p.Namespace)
		case 3:
			return f.int32(&p.LogLevel)
		case 5:
			return f.text(&p.TTRPCAddress)
		case 6:
			return f.text(&p.GRPCAddress)
		case 8:
			var e extension
			err := f.message(&e)
			p.Extensions = append(p.Extensions, e.value)
			return err
		case 9:
			return f.text(&p.SocketDir)
		}
		return nil
	})
}

type extension struct{ value Any }

func (e *extension) Decode(b []byte) error {
	return fields(b, func(f field) error {
		if f.num == 1 {
			return f.message(&e.value)
		}
		return nil
	})
}

// BootstrapResult is the answer on stdout.
type BootstrapResult struct {
	Version  int32 // of the task service
	Address  string
	Protocol string
}

// Append writes r behind b.
func (r *BootstrapResult) Append(b []byte) []byte {
	return putText(putText(putInt(b, 1, int64(r.Version)), 2, r.Address), 3, r.Protocol)
}

// The type names of the options a shim understands, without any prefix.
const (
	OptionsType           = "containerd.runc.v1.Options"
	CheckpointOptionsType = "containerd.runc.v1.CheckpointOptions"
)

// Options is containerd.runc.v1.Options.
type Options struct {
	NoPivotRoot   bool
	NoNewKeyring  bool
	ShimCgroup    string
	IoUID, IoGID  uint32
	BinaryName    string
	Root          string
	SystemdCgroup bool
	CriuImagePath string
	CriuWorkPath  string
}

// Decode reads o from b.
func (o *Options) Decode(b []byte) error {
	return fields(b, func(f field) error {
		switch f.num {
		case 1:
			return f.bool(&o.NoPivotRoot)
		case 2:
			return f.bool(&o.NoNewKeyring)
		case 3:
			return f.text(&o.ShimCgroup)
		case 4:
			return f.uint32(&o.IoUID)
		case 5:
			return f.uint32(&o.IoGID)
		case 6:
			return f.text(&o.BinaryName)
		case 7:
			return f.text(&o.Root)
		case 9:
			return f.bool(&o.SystemdCgroup)
		case 10:
			return f.text(&o.CriuImagePath)
		case 11:
			return f.text(&o.CriuWorkPath)
		}
		return nil
	})
}

// CheckpointOptions is containerd.runc.v1.CheckpointOptions.
type CheckpointOptions struct {
	Exit                bool
	OpenTCP             bool
	ExternalUnixSockets bool
	Terminal            bool
	FileLocks           bool
	EmptyNamespaces     []string
	CgroupsMode         string
	ImagePath           string
	WorkPath            string
	ParentPath          string
}

// Decode reads o from b.
func (o *CheckpointOptions) Decode(b []byte) error {
	return fields(b, func(f field) error {
		switch f.num {
		case 1:
			return f.bool(&o.Exit)
		case 2:
			return f.bool(&o.OpenTCP)
		case 3:
			return f.bool(&o.ExternalUnixSockets)
		case 4:
			return f.bool(&o.Terminal)
		case 5:
			return f.bool(&o.FileLocks)
		case 6:
			return f.texts(&o.EmptyNamespaces)
		case 7:
			return f.text(&o.CgroupsMode)
		case 8:
			return f.text(&o.ImagePath)
		case 9:
			return f.text(&o.WorkPath)
		case 10:
			return f.text(&o.ParentPath)
		}
		return nil
	})
}

// FeaturesType names the JSON of `runc features` in an Any.
const FeaturesType = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"

// RuntimeInfo is what `-info` prints.
type RuntimeInfo struct {
	Name     string
	Version  string
	Revision string
	Options  Any
	Features Any
}

// Append writes i behind b.
func (i *RuntimeInfo) Append(b []byte) []byte {
	b = putText(b, 1, i.Name)
	b = putNested(b, 2, func(b []byte) []byte { return putText(putText(b, 1, i.Version), 2, i.Revision) })
	b = putAny(b, 3, i.Options)
	return putAny(b, 4, i.Features)
}
