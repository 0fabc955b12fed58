package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"

	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/failpoint"
)

// Add attaches a pod as planned, one network after the other. The result holds what
// has been attached also when there is an error; Del undoes all of it.
func (n *Networks) Add(ctx context.Context, s Saved) (Result, error) {
	n.busy.RLock()
	defer n.busy.RUnlock()
	s.Attachments = append([]Attached(nil), s.Attachments...)
	for i := range s.Attachments {
		res, err := n.add(ctx, s, s.Attachments[i])
		if err != nil {
			return Result{s}, err
		}
		s.Attachments[i].Result = res
		failpoint.Here("cni.added")
	}
	return Result{s}, nil
}

func (n *Networks) add(ctx context.Context, s Saved, a Attached) (json.RawMessage, error) {
	l, err := a.list()
	if err != nil {
		return nil, err
	}
	var prev json.RawMessage
	for i, raw := range l.Plugins {
		if i > 0 {
			failpoint.Here("cni.plugin.added")
		}
		out, err := n.plugin(ctx, "ADD", s, a, l, raw, prev)
		if err != nil {
			return nil, err
		}
		if prev, err = resultAs(out, l.Version); err != nil {
			return nil, fmt.Errorf("plugin %s of network %s: ADD: its answer is no CNI result: %w: %.200q", pluginType(raw), a.Network, err, out)
		}
	}
	return prev, nil
}

// resultAs reads a plugin's answer and gives it in the network's version, which is
// what the next plugin and a later DEL want. An answer that names no version has
// the network's (CNI issue 895).
func resultAs(out []byte, want string) (json.RawMessage, error) {
	var doc map[string]json.RawMessage
	if err := json.Unmarshal(out, &doc); err != nil {
		return nil, err
	}
	if doc == nil {
		doc = map[string]json.RawMessage{}
	}
	var have string
	if v, ok := doc["cniVersion"]; ok {
		if err := json.Unmarshal(v, &have); err != nil {
			return nil, err
		}
	}
	if have == "" {
		have = want
		doc["cniVersion"], _ = json.Marshal(want) // a string
		var err error
		if out, err = json.Marshal(doc); err != nil {
			return nil, err
		}
	}
	r, err := create.Create(have, out)
	if err != nil {
		return nil, err
	}
	if r, err = r.GetAsVersion(want); err != nil {
		return nil, err
	}
	return json.Marshal(r)
}

// Del gives back everything that an ADD by this plan took or may have taken: it
// needs neither the configuration file nor the namespace to be still there, and
// may be called again, also before any ADD.
func (n *Networks) Del(ctx context.Context, s Saved) error { return n.del(ctx, s, false) }

// End is Del for a pod whose network namespace the caller removes right afterwards,
// whatever End returns. What the kernel takes away with the namespace may stay until
// then, but nothing that is left can be reached or sends any more.
func (n *Networks) End(ctx context.Context, s Saved) error { return n.del(ctx, s, true) }

func (n *Networks) del(ctx context.Context, s Saved, ending bool) error {
	n.busy.RLock()
	defer n.busy.RUnlock()
	if !isNamespace(s.NetNS) {
		s.NetNS = "" // what plugins take to mean that it is gone
	}
	var all []error
	for i := len(s.Attachments) - 1; i >= 0; i-- {
		a := s.Attachments[i]
		l, err := a.list()
		// Within one network the first failure ends it: an address must not become
		// free while a port still leads to it.
		for j := len(l.Plugins) - 1; j >= 0 && err == nil; j-- {
			var c call
			if c, err = pluginCall("DEL", s, a, l, l.Plugins[j], l.previous(a)); err == nil {
				c.ending = ending
				_, err = n.do(ctx, c)
			}
			failpoint.Here("cni.plugin.deleted")
		}
		all = append(all, err)
	}
	return errors.Join(all...)
}

// Check asks the plugins whether the attachment is as it was made. Networks whose
// version has no CHECK, or that have it disabled, are taken to be well.
func (n *Networks) Check(ctx context.Context, s Saved) error {
	n.busy.RLock()
	defer n.busy.RUnlock()
	var all []error
	for _, a := range s.Attachments {
		l, err := a.list()
		if err != nil {
			return err
		}
		if l.previous(a) == nil || l.DisableCheck {
			continue
		}
		for _, raw := range l.Plugins {
			if _, err = n.plugin(ctx, "CHECK", s, a, l, raw, l.previous(a)); err != nil {
				break
			}
		}
		all = append(all, err)
	}
	return errors.Join(all...)
}

func (a Attached) list() (listDoc, error) {
	var l listDoc
	if err := json.Unmarshal(a.Config, &l); err != nil {
		return l, errs.New(errs.DataLoss, "saved configuration of network %s: %v", a.Network, err)
	}
	return l, nil
}

// previous is the result that DEL and CHECK show the plugins; versions before 0.4
// have none.
func (l listDoc) previous(a Attached) json.RawMessage {
	if ok, err := version.GreaterThanOrEqualTo(l.Version, "0.4.0"); err != nil || !ok {
		return nil
	}
	return a.Result
}

func pluginType(raw json.RawMessage) string {
	var p struct {
		Type string `json:"type"`
	}
	_ = json.Unmarshal(raw, &p) // only named in a message
	return p.Type
}

// plugin runs one plugin of a network's list for a pod.
func (n *Networks) plugin(ctx context.Context, verb string, s Saved, a Attached, l listDoc, raw, prev json.RawMessage) ([]byte, error) {
	c, err := pluginCall(verb, s, a, l, raw, prev)
	if err != nil {
		return nil, err
	}
	return n.do(ctx, c)
}

func pluginCall(verb string, s Saved, a Attached, l listDoc, raw, prev json.RawMessage) (call, error) {
	caps := s.Capabilities
	if len(a.Capabilities) > 0 {
		caps = maps.Clone(s.Capabilities)
		if caps == nil {
			caps = map[string]json.RawMessage{}
		}
		maps.Copy(caps, a.Capabilities)
	}
	more := map[string]json.RawMessage{}
	if prev != nil {
		more["prevResult"] = prev
	}
	doc, typ, err := pluginConf(l, raw, caps, more)
	if err != nil {
		return call{}, fmt.Errorf("configuration of network %s: %w", a.Network, err)
	}
	return call{verb: verb, network: a.Network, typ: typ, stdin: doc, id: s.ContainerID, netns: s.NetNS, ifName: a.IfName, args: s.Args}, nil
}

// pluginConf is what one plugin gets on its stdin: its part of the list, with the
// network's name and version, what it is capable of, and more.
func pluginConf(l listDoc, raw json.RawMessage, caps, more map[string]json.RawMessage) (doc []byte, typ string, err error) {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, "", err
	}
	var want map[string]bool
	if c, ok := m["capabilities"]; ok {
		if err := json.Unmarshal(c, &want); err != nil {
			return nil, "", fmt.Errorf("capabilities: %w", err)
		}
	}
	run := map[string]json.RawMessage{}
	for name, on := range want {
		if v, ok := caps[name]; ok && on {
			run[name] = v
		}
	}
	if err := json.Unmarshal(m["type"], &typ); err != nil {
		return nil, "", fmt.Errorf("type of plugin: %w", err)
	}
	if err := put(m, map[string]any{"name": l.Name, "cniVersion": l.Version, "runtimeConfig": given(run, len(run) > 0)}); err != nil {
		return nil, "", err
	}
	maps.Copy(m, more)
	doc, err = json.Marshal(m)
	return doc, typ, err
}

// nsfsMagic is NSFS_MAGIC of linux/magic.h.
const nsfsMagic = 0x6e736673

func isNamespace(path string) bool {
	if path == "" {
		return false
	}
	var st unix.Statfs_t
	if unix.Statfs(path, &st) != nil {
		return false
	}
	return st.Type == nsfsMagic || strings.HasPrefix(path, "/proc/") && st.Type == unix.PROC_SUPER_MAGIC
}

// env is what a plugin is told by its environment (CNI specification 1.1, section 2).
func (c call) env(dirs []string) []string {
	var args []string
	for _, a := range c.args {
		args = append(args, a[0]+"="+a[1])
	}
	var out []string
	for _, e := range os.Environ() {
		// What was meant for the daemon is not for its children.
		if !strings.HasPrefix(e, "CNI_") && !strings.HasPrefix(e, "NOTIFY_SOCKET=") && !strings.HasPrefix(e, "LISTEN_") {
			out = append(out, e)
		}
	}
	return append(out, "CNI_COMMAND="+c.verb, "CNI_CONTAINERID="+c.id, "CNI_NETNS="+c.netns, "CNI_IFNAME="+c.ifName,
		"CNI_ARGS="+strings.Join(args, ";"), "CNI_PATH="+strings.Join(dirs, string(os.PathListSeparator)))
}
