// Package builtin does in this process what the stock CNI plugins loopback, bridge,
// ptp, host-local and portmap do, and bandwidth where there is no limit, by netlink instead of by programs: with the same results,
// files, links and rules, so that the program can undo what this package did and this
// package what the program did. decisions/0010-builtin-cni.md says how far that goes.
//
// It owns nothing beyond what those plugins own. It does only what it knows: a key
// of the configuration that it has not heard of makes Can say no, and the program is
// run.
package builtin

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
)

// Call is one call of a plugin (CNI specification 1.1, section 2).
type Call struct {
	Verb        string // ADD, DEL, STATUS or GC
	Type        string
	Conf        []byte // what a plugin gets on stdin
	ContainerID string
	NetNS       string // path; "" if it is gone
	IfName      string
	// Ending says of a DEL that the caller ends the namespace right after it. A link is
	// then cut, not deleted: the kernel deletes it with the namespace, on its own time,
	// and a deletion makes its caller wait for all processors.
	Ending bool
}

// Plugins are the plugins.
type Plugins struct {
	stores  stores
	bridges bridges
	rules   backend
}

// New returns the plugins.
func New() *Plugins { return &Plugins{} }

// Close closes what is kept open between calls.
func (p *Plugins) Close() { p.rules.close() }

// verbs are those that each plugin has here; the others are the program's.
var verbs = map[string]bool{"ADD": true, "DEL": true, "STATUS": true, "GC": true}

// Can reports whether a call is one that Do does exactly as the program would.
func (p *Plugins) Can(c Call) bool {
	if !verbs[c.Verb] {
		return false
	}
	switch c.Type {
	case "loopback":
		return known(c.Conf, loopbackKeys)
	case "host-local":
		return known(c.Conf, ipamOnlyKeys)
	case "bridge":
		conf, err := readBridge(c)
		return known(c.Conf, bridgeKeys) && err == nil && conf.IPAM.Type == "host-local" && (!conf.IPMasq || p.rules.usable(conf.IPMasqBackend))
	case "ptp":
		conf, err := readPTP(c)
		return known(c.Conf, ptpKeys) && err == nil && conf.IPAM.Type == "host-local" && (!conf.IPMasq || p.rules.usable(conf.IPMasqBackend))
	case "bandwidth":
		return known(c.Conf, bandwidthKeys) && (c.Verb != "ADD" || unlimited(c))
	case "portmap":
		conf, err := readPortmap(c)
		return known(c.Conf, portmapKeys) && err == nil && (len(conf.Runtime.Ports) == 0 || p.rules.usable(conf.Backend))
	}
	return false
}

// Do makes the call. The answer is the plugin's: a result for ADD, else nothing.
func (p *Plugins) Do(ctx context.Context, c Call) ([]byte, error) {
	if c.Verb == "STATUS" || c.Verb == "GC" {
		return nil, nil // as the programs: they keep nothing that could go stale or not be ready
	}
	var r *types100.Result
	var err error
	switch c.Type + " " + c.Verb {
	case "loopback ADD":
		r, err = loopback(c)
	case "host-local ADD":
		r, err = p.address(ctx, c)
	case "host-local DEL":
		err = p.release(ctx, c, nil)
	case "bridge ADD":
		r, err = p.addBridge(ctx, c)
	case "bridge DEL":
		err = p.delBridge(ctx, c)
	case "ptp ADD":
		r, err = p.addPTP(ctx, c)
	case "ptp DEL":
		err = p.delPTP(ctx, c)
	case "bandwidth ADD":
		r, err = passOn(c)
	case "bandwidth DEL":
		err = deleteIFB(c)
	case "portmap ADD":
		r, err = p.addPorts(ctx, c)
	case "portmap DEL":
		err = p.delPorts(ctx, c)
	case "loopback DEL":
		err = loopbackDown(c)
	}
	if err != nil || r == nil {
		return nil, err
	}
	return answer(c, r)
}

// head is what every configuration has.
type head struct {
	Version string          `json:"cniVersion"`
	Name    string          `json:"name"`
	Prev    json.RawMessage `json:"prevResult"`
	DNS     types.DNS       `json:"dns"`
}

// previous reads the result of the plugins before; nil if there is none.
func (h head) previous() (*types100.Result, error) {
	if len(h.Prev) == 0 {
		return nil, nil
	}
	var raw map[string]any
	if err := json.Unmarshal(h.Prev, &raw); err != nil {
		return nil, fmt.Errorf("previous result: %w", err)
	}
	conf := types.PluginConf{CNIVersion: h.Version, RawPrevResult: raw}
	if err := version.ParsePrevResult(&conf); err != nil {
		return nil, fmt.Errorf("previous result: %w", err)
	}
	return types100.NewResultFromResult(conf.PrevResult)
}

// answer gives a result in the configuration's version.
func answer(c Call, r *types100.Result) ([]byte, error) {
	var h head
	if err := json.Unmarshal(c.Conf, &h); err != nil {
		return nil, err
	}
	out, err := r.GetAsVersion(h.Version)
	if err != nil {
		return nil, err
	}
	return json.Marshal(out)
}
