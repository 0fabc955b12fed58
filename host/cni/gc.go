package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/version"
)

// Attachment is one interface of one pod on one network.
type Attachment struct {
	Network     string `json:"-"`
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifname"`
}

// GC takes away what is left of attachments that no row speaks of. valid lists those
// that rows do speak of; it is called after the plugins' records were read, so that
// an attachment made meanwhile is among them: its row is older than its records.
//
// Leftovers that host-local records and that carry our mark are undone by DEL; then
// plugins of version 1.1 are told, by the verb GC, which attachments there are, those
// of others included as far as they can be known. A list with disableGC, the
// specification's word for networks that several runtimes share, gets no such verb.
func (n *Networks) GC(ctx context.Context, valid func() []Attachment) error {
	f := n.current()
	var all []error
	for _, w := range f.networks {
		held := held(w)
		ours := valid()
		for _, a := range held {
			if !n.cfg.Owner.Owns(a.ContainerID) || slices.Contains(ours, a) {
				continue
			}
			n.cfg.Log.Info("a leftover attachment is taken away", "network", a.Network, "pod", a.ContainerID, "interface", a.IfName)
			s := Saved{ContainerID: a.ContainerID, Attachments: []Attached{{Network: a.Network, IfName: a.IfName, Config: w.raw}}}
			if n.cfg.NetNS != nil {
				s.NetNS = n.cfg.NetNS(a.ContainerID)
			}
			if err := n.Del(ctx, s); err != nil {
				all = append(all, fmt.Errorf("leftover %s of pod %s: %w", a.IfName, a.ContainerID, err))
			}
		}
		all = append(all, n.tell(ctx, w, valid))
	}
	return errors.Join(all...)
}

// defaultData is where host-local keeps its records (its documentation, "Files").
const defaultData = "/var/lib/cni/networks"

// held lists the attachments that host-local has addresses for, whoever's they are.
func held(w *network) []Attachment {
	var out []Attachment
	for _, p := range w.list.Plugins {
		var c struct {
			IPAM struct {
				Type string `json:"type"`
				Data string `json:"dataDir"`
			} `json:"ipam"`
		}
		if json.Unmarshal(p.Bytes, &c) != nil || c.IPAM.Type != "host-local" {
			continue
		}
		if c.IPAM.Data == "" {
			c.IPAM.Data = defaultData
		}
		dir := filepath.Join(c.IPAM.Data, w.list.Name)
		files, err := os.ReadDir(dir)
		if err != nil {
			continue // no address given yet
		}
		for _, e := range files {
			if _, err := netip.ParseAddr(e.Name()); err != nil {
				continue
			}
			data, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				continue // freed meanwhile
			}
			// A file for each address: the container's id, CR LF, the interface.
			id, ifName, _ := bytes.Cut(bytes.TrimSpace(data), []byte("\r\n"))
			a := Attachment{w.list.Name, string(id), string(ifName)}
			if a.IfName != "" && !slices.Contains(out, a) {
				out = append(out, a)
			}
		}
	}
	return out
}

// others lists attachments to a network that other runtimes have written down where
// libcni does by default: containerd, CRI-O, nerdctl, podman.
func others(name string) []Attachment {
	files, err := filepath.Glob("/var/lib/cni/results/" + name + "-*")
	if err != nil {
		return nil
	}
	var out []Attachment
	for _, f := range files {
		var c struct {
			ContainerID string `json:"containerId"`
			IfName      string `json:"ifName"`
			Network     string `json:"networkName"`
		}
		data, err := os.ReadFile(f)
		if err == nil && json.Unmarshal(data, &c) == nil && c.Network == name {
			out = append(out, Attachment{name, c.ContainerID, c.IfName})
		}
	}
	return out
}

// gcWait is how long the verb GC waits for running ADDs and DELs, which must not be
// under way with it (CNI specification 1.1, section 3, "Lifecycle & Ordering").
const gcWait = 5 * time.Second

func (n *Networks) tell(ctx context.Context, w *network, valid func() []Attachment) error {
	if ok, err := version.GreaterThanOrEqualTo(w.list.CNIVersion, "1.1.0"); err != nil || !ok || w.list.DisableGC {
		return err
	}
	if !n.exclusive(ctx) {
		return nil // busy now: another time
	}
	defer n.busy.Unlock()
	list := []Attachment{}
	for _, a := range slices.Concat(valid(), held(w), others(w.list.Name)) {
		if a.Network == w.list.Name && !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	more := map[string]json.RawMessage{}
	// The second name is an early misspelling that plugins were built with.
	if err := put(more, map[string]any{"cni.dev/valid-attachments": list, "cni.dev/attachments": list}); err != nil {
		return err
	}
	l := listDoc{Version: w.list.CNIVersion, Name: w.list.Name}
	var all []error
	for _, p := range w.list.Plugins {
		doc, typ, err := pluginConf(l, p.Bytes, nil, more)
		if err == nil {
			_, err = n.do(ctx, call{verb: "GC", network: l.Name, typ: typ, stdin: doc})
		}
		if err != nil && !strings.Contains(err.Error(), "unknown CNI_COMMAND") {
			all = append(all, err)
		}
	}
	return errors.Join(all...)
}

// exclusive waits until nothing is being attached or detached. It does not queue: a
// plugin that hangs must not hold up everybody else.
func (n *Networks) exclusive(ctx context.Context) bool {
	for end := time.Now().Add(gcWait); ; {
		if n.busy.TryLock() {
			return true
		}
		if ctx.Err() != nil || time.Now().After(end) {
			return false
		}
		time.Sleep(50 * time.Millisecond)
	}
}
