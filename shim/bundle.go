package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/host/child"
	"github.com/berthd/berth/shim/wire"
)

// The files that a shim keeps in a bundle; docs/design/shim.md lists all.
const (
	settingsFile = "shim.json"
	exitFile     = "exit.json"
	attachSocket = "attach.sock"
	addressFile  = "address"
)

// bundleSpec is what a shim wants to know of config.json.
type bundleSpec struct {
	Annotations map[string]string `json:"annotations"`
	Linux       struct {
		CgroupsPath string `json:"cgroupsPath"`
		Namespaces  []struct {
			Type string `json:"type"`
			Path string `json:"path"`
		} `json:"namespaces"`
		UIDMappings []idMapping `json:"uidMappings"`
		GIDMappings []idMapping `json:"gidMappings"`
	} `json:"linux"`
}

type idMapping struct {
	ContainerID uint32 `json:"containerID"`
	HostID      uint32 `json:"hostID"`
}

// rootOf is the host's id of a user namespace's root; 0 without one.
func rootOf(list []idMapping) uint32 {
	for _, m := range list {
		if m.ContainerID == 0 {
			return m.HostID
		}
	}
	return 0
}

func readSpec(bundle string) (bundleSpec, error) {
	var s bundleSpec
	data, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return s, fmt.Errorf("read spec: %w", err)
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return s, errs.New(errs.InvalidArgument, "read spec of bundle %s: %v", bundle, err)
	}
	return s, nil
}

// sharesPIDs says whether the container's processes live on when its first dies.
func (s bundleSpec) sharesPIDs() bool {
	for _, n := range s.Linux.Namespaces {
		if n.Type == "pid" {
			return n.Path != ""
		}
	}
	return true
}

// groupAnnotations say which containers share a shim, the first that is there.
var groupAnnotations = []string{"io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"}

func (s bundleSpec) group(id string) string {
	for _, a := range groupAnnotations {
		if g := s.Annotations[a]; g != "" {
			return g
		}
	}
	return id
}

// settings is shim.json: what `delete` must know when the shim is dead.
type settings struct {
	Runtime       string `json:"runtime,omitempty"`
	Root          string `json:"root,omitempty"`
	SystemdCgroup bool   `json:"systemd_cgroup,omitempty"`
	NoPivotRoot   bool   `json:"no_pivot_root,omitempty"`
	NoNewKeyring  bool   `json:"no_new_keyring,omitempty"`
	CgroupsPath   string `json:"cgroups_path,omitempty"`
	// The first process: a pid alone may have become another's.
	Pid       int    `json:"pid,omitempty"`
	StartTime uint64 `json:"start_time,omitempty"` // clock ticks since boot
}

func (s settings) write(bundle string) error {
	return writeJSON(filepath.Join(bundle, settingsFile), s)
}

// readSettings returns the zero settings if there are none.
func readSettings(bundle string) (settings, error) {
	var s settings
	err := readJSON(filepath.Join(bundle, settingsFile), &s)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return s, err
}

// exitRecord is exit.json: how the first process ended. It is there before anybody
// is told, so that an exit outlives the shim.
type exitRecord struct {
	Version int       `json:"version"` // 1
	ID      string    `json:"id"`
	Pid     int       `json:"pid"`
	Status  int       `json:"status"` // exit code, or 128 and the signal's number
	At      time.Time `json:"exited_at"`
	OOM     bool      `json:"oom,omitempty"` // the kernel killed one of its processes for want of memory
}

func writeExit(bundle, id string, e child.Exit, oom bool) error {
	r := exitRecord{1, id, e.Pid, e.Status, e.At.UTC(), oom}
	return writeJSON(filepath.Join(bundle, exitFile), r)
}

func readExit(bundle string) (exitRecord, error) {
	var r exitRecord
	err := readJSON(filepath.Join(bundle, exitFile), &r)
	if err == nil && (r.Version != 1 || r.At.IsZero() || r.Status < 0) {
		err = errs.New(errs.DataLoss, "%s of bundle %s makes no sense", exitFile, bundle)
	}
	return r, err
}

// writeJSON replaces a file as a whole. It does not flush to disk: a record must
// outlive this process, and no container outlives a power failure.
func writeJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	next := filepath.Join(filepath.Dir(path), "."+filepath.Base(path))
	if err := os.WriteFile(next, data, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.Rename(next, path)
}

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return errs.New(errs.DataLoss, "read %s: %v", path, err)
	}
	return nil
}

// readOptions decodes the runtime options of a request.
func readOptions(a wire.Any) (wire.Options, error) {
	var o wire.Options
	name := a.TypeURL[strings.LastIndexByte(a.TypeURL, '/')+1:]
	switch name {
	case wire.OptionsType:
		if err := o.Decode(a.Value); err != nil {
			return o, errs.New(errs.InvalidArgument, "read runtime options: %v", err)
		}
	case "", wire.CheckpointOptionsType:
	default:
		if len(a.Value) > 0 {
			return o, errs.New(errs.InvalidArgument, "runtime options of type %s are not known, only %s", name, wire.OptionsType)
		}
	}
	return o, nil
}

// maxExecID is the longest exec id: it is part of file names.
const maxExecID = 76

// checkID says whether an id can name files: the rule of base/id, which is not
// used here because the packages it needs cost every shim memory.
func checkID(what, s string) error {
	joint := true // at the start, and after '.', '_' or '-'
	for _, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
			joint = false
		case (c == '.' || c == '_' || c == '-') && !joint:
			joint = true
		default:
			return errs.New(errs.InvalidArgument, "%s %.80q is not valid", what, s)
		}
	}
	if joint || len(s) > maxExecID {
		return errs.New(errs.InvalidArgument, "%s %.80q is not valid", what, s)
	}
	return nil
}
