package config

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/pelletier/go-toml/v2"
	"google.golang.org/protobuf/proto"

	"github.com/berthd/berth/base/spec"
)

// RuncType is the runtime that berth-shim serves.
const RuncType = "io.containerd.runc.v2"

// Runc are the options of RuncType, as a handler's Options hold them.
type Runc struct {
	BinaryName     string `toml:"BinaryName"`     // OCI runtime: name on PATH or absolute path; empty: runc
	Root           string `toml:"Root"`           // of the runtime's state
	SystemdCgroup  *bool  `toml:"SystemdCgroup"`  // nil: not said
	NoNewKeyring   bool   `toml:"NoNewKeyring"`   //
	NoPivotRoot    bool   `toml:"NoPivotRoot"`    //
	ShimCgroup     string `toml:"ShimCgroup"`     // cgroup that the shim joins
	IoUID          uint32 `toml:"IoUid"`          // owner of the pipes of output
	IoGID          uint32 `toml:"IoGid"`          //
	CriuImagePath  string `toml:"CriuImagePath"`  //
	CriuWorkPath   string `toml:"CriuWorkPath"`   //
	CriuPath       string `toml:"CriuPath"`       // not used any more
	TaskAPIAddress string `toml:"TaskApiAddress"` // deprecated
	TaskAPIVersion uint32 `toml:"TaskApiVersion"` //
}

// Runc reads the options of a handler of RuncType. A key that is no option of runc
// is an error that lists those that are.
func (h Handler) Runc() (Runc, error) {
	var out Runc
	var d decoder
	d.structure(grow(h.Options, "options", nil, nil), reflect.ValueOf(&out).Elem())
	for i, u := range d.unknown {
		text := fmt.Sprintf("%s: runc has no such option", u.key)
		if d.close[i] != "" {
			text += fmt.Sprintf(": did you mean %s?", d.close[i])
		}
		d.errs = append(d.errs, errors.New(text))
	}
	return out, d.err()
}

// ShimOptions is what the handler's shim gets with each container:
// containerd.runc.v1.Options for RuncType, else runtimeoptions.v1.Options, whose
// config_body holds the keys that the message does not have, as TOML. Without options
// it is empty.
func (h Handler) ShimOptions() (spec.Any, error) {
	if h.Type != RuncType {
		return h.otherOptions()
	}
	r, err := h.Runc()
	if err != nil {
		return spec.Any{}, err
	}
	return pack(&options.Options{
		NoPivotRoot: r.NoPivotRoot, NoNewKeyring: r.NoNewKeyring, ShimCgroup: r.ShimCgroup, IoUid: r.IoUID, IoGid: r.IoGID,
		BinaryName: r.BinaryName, Root: r.Root, SystemdCgroup: r.SystemdCgroup != nil && *r.SystemdCgroup,
		CriuImagePath: r.CriuImagePath, CriuWorkPath: r.CriuWorkPath,
	})
}

func (h Handler) otherOptions() (spec.Any, error) {
	if len(h.Options) == 0 {
		return spec.Any{}, nil
	}
	rest := maps.Clone(h.Options)
	var out runtimeoptions.Options
	for key, to := range map[string]*string{"TypeUrl": &out.TypeUrl, "ConfigPath": &out.ConfigPath} {
		v, ok := rest[key]
		if !ok {
			continue
		}
		if *to, ok = v.(string); !ok {
			return spec.Any{}, fmt.Errorf("%s: want a string, not %v", key, v)
		}
		delete(rest, key)
	}
	if len(rest) > 0 {
		body, err := toml.Marshal(rest)
		if err != nil {
			return spec.Any{}, fmt.Errorf("write %v as TOML: %w", slices.Sorted(maps.Keys(rest)), err)
		}
		out.ConfigBody = body
	}
	return pack(&out)
}

func pack(m proto.Message) (spec.Any, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	return spec.Any{TypeURL: string(m.ProtoReflect().Descriptor().FullName()), Value: b}, err
}

// Lookup finds the runtime of a handler's name; "" is the default one.
func (h Handlers) Lookup(name string) (string, Handler, bool) {
	if name == "" {
		name = h.Default
	}
	r, ok := h.Runtimes[name]
	return name, r, ok
}

// SnapshotterOf is the snapshotter of a runtime's containers and images.
func (c Config) SnapshotterOf(runtime string) string {
	if s := c.Plugins.Runtime.Containerd.Runtimes[runtime].Snapshotter; s != "" {
		return s
	}
	if s := c.Plugins.Images.Platforms[runtime].Snapshotter; s != "" {
		return s
	}
	return c.Plugins.Images.Snapshotter
}
