package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/berthd/berth/base/errs"
)

// reload reads the folder anew, and says in the log what is different.
func (n *Networks) reload() {
	next := readFolder(n.cfg.Dir)
	n.mu.Lock()
	old := n.mu.folder
	if next.trouble = next.complaint(n.cfg.Dir); next.trouble == old.trouble {
		next.since = old.since
	}
	n.mu.folder = next
	n.mu.Unlock()
	if maps.Equal(old.stamps, next.stamps) && old.trouble == next.trouble {
		return
	}
	n.asked.forget()
	var names []string
	for _, w := range next.networks {
		names = append(names, w.list.Name)
	}
	n.cfg.Log.Info("network configurations read", "dir", n.cfg.Dir, "networks", names)
	for file, err := range next.broken {
		n.cfg.Log.Warn("network configuration is left out", "file", file, "error", err)
	}
}

func readFolder(dir string) folder {
	f := folder{broken: map[string]error{}, stamps: map[string]string{}, since: time.Now()}
	all, err := os.ReadDir(dir)
	if err != nil {
		f.err = err
		return f
	}
	for _, e := range all { // sorted by name
		if e.IsDir() || strings.HasPrefix(e.Name(), ".") || !slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(e.Name())) {
			continue
		}
		path := filepath.Join(dir, e.Name())
		w, err := readNetwork(path)
		if errors.Is(err, os.ErrNotExist) {
			continue // gone meanwhile
		}
		if err != nil {
			f.broken[path] = err
			f.stamps[path] = err.Error()
			continue
		}
		if i := slices.IndexFunc(f.networks, func(o *network) bool { return o.list.Name == w.list.Name }); i >= 0 {
			f.broken[path] = errs.New(errs.AlreadyExists, "network %q is defined by %s already", w.list.Name, f.networks[i].file)
			continue
		}
		f.networks = append(f.networks, w)
		f.stamps[path] = string(w.raw)
	}
	return f
}

// readNetwork reads one file: a list of plugins, or a single one, which becomes a
// list (CNI specification 1.1, section 1).
func readNetwork(path string) (*network, error) {
	var list *libcni.NetworkConfigList
	var err error
	if filepath.Ext(path) == ".conflist" {
		list, err = libcni.NetworkConfFromFile(path)
	} else {
		list, err = readSingle(path)
	}
	if err != nil {
		return nil, err
	}
	if err := checkList(list); err != nil {
		return nil, err
	}
	raw, err := flatten(list)
	return &network{file: path, list: list, raw: raw}, err
}

func readSingle(path string) (*libcni.NetworkConfigList, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var shape struct {
		Plugins json.RawMessage `json:"plugins"`
	}
	if err := json.Unmarshal(data, &shape); err != nil {
		return nil, err
	}
	if shape.Plugins != nil { // a list under the name of a single one
		return libcni.NetworkConfFromFile(path)
	}
	one, err := libcni.NetworkPluginConfFromBytes(data)
	if err != nil {
		return nil, err
	}
	return &libcni.NetworkConfigList{Name: one.Network.Name, CNIVersion: one.Network.CNIVersion, Plugins: []*libcni.PluginConfig{one}}, nil
}

// checkList refuses what would go wrong later, or lead out of the plugin folders
// (CVE-2021-20206).
func checkList(list *libcni.NetworkConfigList) error {
	if err := utils.ValidateNetworkName(list.Name); err != nil {
		return errs.New(errs.InvalidArgument, "name of the network: %w", err)
	}
	for _, p := range list.Plugins {
		if t := p.Network.Type; t == "" || t == "." || t == ".." || strings.ContainsAny(t, "/\x00") {
			return errs.New(errs.InvalidArgument, "plugin type %q is not the name of a program", t)
		}
	}
	if list.CNIVersion == "" {
		list.CNIVersion = "0.1.0" // what the specification says that it means
	}
	if _, err := version.GreaterThan(list.CNIVersion, "0.1.0"); err != nil {
		return errs.New(errs.InvalidArgument, "cniVersion %q: %w", list.CNIVersion, err)
	}
	if !slices.Contains(version.All.SupportedVersions(), list.CNIVersion) {
		return errs.New(errs.InvalidArgument, "cniVersion %q is not known; there are %s", list.CNIVersion, strings.Join(version.All.SupportedVersions(), ", "))
	}
	return nil
}

// flatten writes a list as one document, whatever files it came from.
func flatten(list *libcni.NetworkConfigList) ([]byte, error) {
	doc := listDoc{Version: list.CNIVersion, Name: list.Name, DisableCheck: list.DisableCheck, DisableGC: list.DisableGC}
	for _, p := range list.Plugins {
		doc.Plugins = append(doc.Plugins, p.Bytes)
	}
	return json.Marshal(doc)
}

type listDoc struct {
	Version      string            `json:"cniVersion"`
	Name         string            `json:"name"`
	DisableCheck bool              `json:"disableCheck,omitempty"`
	DisableGC    bool              `json:"disableGC,omitempty"`
	Plugins      []json.RawMessage `json:"plugins"`
}

// complaint says in one line what is wrong with the folder; "" if nothing is.
func (f *folder) complaint(dir string) string {
	var all []string
	switch {
	case errors.Is(f.err, os.ErrNotExist):
		all = append(all, fmt.Sprintf("no network configuration: directory %s does not exist", dir))
	case f.err != nil:
		all = append(all, "no network configuration: "+f.err.Error())
	case len(f.networks) == 0 && len(f.broken) == 0:
		all = append(all, "no network configuration in "+dir)
	}
	for _, file := range slices.Sorted(maps.Keys(f.broken)) {
		all = append(all, fmt.Sprintf("%s: %v", file, f.broken[file]))
	}
	return strings.Join(all, "; ")
}
