package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/cni/pkg/version"

	"github.com/berthd/berth/base/errs"
)

// Condition says whether pods can get a network now.
type Condition struct {
	Ready   bool
	Reason  string // one word; "" if ready
	Message string // names files, plugins and their own words; may warn although ready
}

// ReasonNotReady is the reason that kubelets and containerd use.
const ReasonNotReady = "NetworkPluginNotReady"

// statusLimit bounds the plugins' STATUS; the caller is a kubelet that asks often.
const statusLimit = 10 * time.Second

// statusFor is how long the plugins' word is good.
const statusFor = 2 * time.Second

// asked is what the plugins last said.
type asked struct {
	mu   sync.Mutex
	good bool
	at   time.Time
	err  error
}

func (a *asked) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.good = false
}

// Status is nil if pods can get a network now. The error's text says why not.
func (n *Networks) Status(ctx context.Context) error {
	if c := n.Condition(ctx); !c.Ready {
		return errs.New(errs.Unavailable, "%s", c.Message)
	}
	return nil
}

// Condition looks at the configuration, at the plugins' programs, and asks the plugins
// of version 1.1 (CNI specification 1.1, STATUS).
func (n *Networks) Condition(ctx context.Context) Condition {
	f := n.current()
	list := n.defaults(f)
	if len(list) == 0 {
		return Condition{Reason: ReasonNotReady, Message: fmt.Sprintf("%s (since %s)", f.complaint(n.cfg.Dir), f.since.UTC().Format(time.RFC3339))}
	}
	var all []error
	for _, w := range list {
		for _, p := range w.list.Plugins {
			if err := n.have(w.list.Name, p.Network.Type, p.Bytes); err != nil {
				all = append(all, fmt.Errorf("%w (%s)", err, w.file))
			}
		}
	}
	if len(all) == 0 {
		all = append(all, n.ask(ctx, list))
	}
	if err := errors.Join(all...); err != nil {
		return Condition{Reason: ReasonNotReady, Message: strings.ReplaceAll(err.Error(), "\n", "; ")}
	}
	return Condition{Ready: true, Message: f.complaint(n.cfg.Dir)}
}

// have reports an error if a plugin, or the one it hands addresses to, has no
// program.
func (n *Networks) have(network, typ string, raw []byte) error {
	var c struct {
		IPAM struct {
			Type string `json:"type"`
		} `json:"ipam"`
	}
	_ = json.Unmarshal(raw, &c) // an ipam of another shape is the plugin's affair
	if n.own != nil && n.inProcess(call{verb: "ADD", typ: typ, stdin: raw}) {
		return nil // with its addresses
	}
	for _, t := range []string{typ, c.IPAM.Type} {
		if t == "" {
			continue
		}
		if _, err := n.run.find(network, t); err != nil {
			return err
		}
	}
	return nil
}

func (n *Networks) ask(ctx context.Context, list []*network) error {
	n.asked.mu.Lock()
	defer n.asked.mu.Unlock()
	if n.asked.good && time.Since(n.asked.at) < statusFor {
		return n.asked.err
	}
	ctx, cancel := context.WithTimeout(ctx, statusLimit)
	defer cancel()
	var all []error
	for _, w := range list {
		all = append(all, n.askNetwork(ctx, w))
	}
	n.asked.err, n.asked.at, n.asked.good = errors.Join(all...), time.Now(), true
	return n.asked.err
}

func (n *Networks) askNetwork(ctx context.Context, w *network) error {
	if ok, err := version.GreaterThanOrEqualTo(w.list.CNIVersion, "1.1.0"); err != nil || !ok {
		return err
	}
	l := listDoc{Version: w.list.CNIVersion, Name: w.list.Name}
	for _, p := range w.list.Plugins {
		doc, typ, err := pluginConf(l, p.Bytes, nil, nil)
		if err != nil {
			return err
		}
		if _, err := n.do(ctx, call{verb: "STATUS", network: l.Name, typ: typ, stdin: doc}); err != nil {
			return err
		}
	}
	return nil
}

// File is one configuration as CRI's verbose status shows it.
type File struct {
	Path    string          `json:"path"`
	Network string          `json:"network,omitempty"`
	Config  json.RawMessage `json:"config,omitempty"`
	Error   string          `json:"error,omitempty"`
}

// Files lists the configuration files as last read.
func (n *Networks) Files() []File {
	f := n.current()
	var out []File
	for _, w := range f.networks {
		out = append(out, File{Path: w.file, Network: w.list.Name, Config: w.raw})
	}
	for _, path := range slices.Sorted(maps.Keys(f.broken)) {
		out = append(out, File{Path: path, Error: f.broken[path].Error()})
	}
	return out
}
