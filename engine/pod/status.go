package pod

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"strings"

	"github.com/berthd/berth/host/cni"
	"github.com/berthd/berth/store"
)

// Condition is one of the things that must be right for pods to run.
type Condition struct {
	Type    string
	OK      bool
	Reason  string
	Message string
}

// HandlerInfo is what a runtime handler can do.
type HandlerInfo struct {
	Name              string
	RecursiveReadOnly bool
	UserNamespaces    bool
}

// Status is the state of the node as far as this daemon makes it.
type Status struct {
	Conditions []Condition
	Handlers   []HandlerInfo
	Info       map[string]string // JSON by topic; nil unless asked for
}

// The cgroup drivers: who makes the groups of pods.
const (
	Cgroupfs = "cgroupfs"
	Systemd  = "systemd"
)

// CgroupDriver is that of the default handler.
func (p *Pods) CgroupDriver() string {
	if h := p.handlers()[""]; h != nil && h.SystemdCgroup {
		return Systemd
	}
	return Cgroupfs
}

// Status tells whether pods can be run now. Rows that were set aside at start do
// not make the node unready; they are told.
func (p *Pods) Status(ctx context.Context, verbose bool) (Status, error) {
	run := Condition{Type: "RuntimeReady", OK: true, Message: p.complaints()}
	if h := p.handlers()[""]; h == nil || h.Broken != nil {
		run.OK, run.Reason = false, "DefaultRuntimeBroken"
	}
	net := p.cfg.Networks.Condition(ctx)
	st := Status{Conditions: []Condition{
		run,
		{Type: "NetworkReady", OK: net.Ready, Reason: net.Reason, Message: net.Message},
	}}
	// The name is containerd's: dashboards look for it.
	old := Condition{Type: "ContainerdHasNoDeprecationWarnings", OK: len(p.cfg.Warnings) == 0}
	if !old.OK {
		old.Reason, old.Message = "ContainerdHasDeprecationWarnings", strings.Join(p.cfg.Warnings, "; ")
	}
	st.Conditions = append(st.Conditions, old)
	for name, h := range p.handlers() {
		if h.Broken != nil {
			continue
		}
		h.learn(p.life)
		st.Handlers = append(st.Handlers, HandlerInfo{Name: name, RecursiveReadOnly: h.RecursiveReadOnly, UserNamespaces: h.IDMap})
	}
	slices.SortFunc(st.Handlers, func(a, b HandlerInfo) int { return strings.Compare(a.Name, b.Name) })
	var err error
	if verbose {
		st.Info, err = p.statusInfo(ctx)
	}
	return st, err
}

// complaints names what was found at start and cannot be used. It makes no node
// unready, the default runtime excepted.
func (p *Pods) complaints() string {
	var all []string
	for name, h := range p.handlers() {
		if h.Broken != nil {
			all = append(all, fmt.Sprintf("runtime handler %q cannot be used: %v", name, h.Broken))
		}
	}
	slices.Sort(all)
	if aside := p.Asides(); len(aside) > 0 {
		all = append(all, fmt.Sprintf("%d rows could not be read and are set aside: see berth doctor", len(aside)))
	}
	return strings.Join(all, "; ")
}

// statusInfo is what `crictl info` shows beside the conditions.
func (p *Pods) statusInfo(ctx context.Context) (map[string]string, error) {
	out := map[string]string{"golang": `"` + runtime.Version() + `"`, "lastCNILoadStatus": `"OK"`}
	if c := p.cfg.Networks.Condition(ctx); !c.Ready {
		b, err := json.Marshal(c.Message)
		if err != nil {
			return nil, err
		}
		out["lastCNILoadStatus"] = string(b)
	}
	handlers := map[string]any{}
	for name, h := range p.handlers() {
		if name != "" {
			handlers[name] = map[string]any{"runtimeType": h.Runtime, "snapshotter": h.Snapshotter, "systemdCgroup": h.SystemdCgroup, "sandboxed": h.Sandboxed}
		}
	}
	for key, v := range map[string]any{
		"cniconfig": struct {
			Networks []cni.File `json:"Networks"`
		}{p.cfg.Networks.Files()},
		"config": map[string]any{"runtimes": handlers, "root": p.cfg.Root, "state": p.cfg.State, "cniConfDir": p.cfg.CNIDir},
		"asides": append([]store.Aside{}, p.Asides()...),
	} {
		b, err := json.Marshal(v)
		if err != nil {
			return nil, err
		}
		out[key] = string(b)
	}
	return out, nil
}
