package builtin

import (
	"encoding/json"
	"errors"
	"fmt"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"
)

// unlimited reports a call of bandwidth for a pod that has no limit: most lists have
// the plugin, few pods have limits. Limits in the configuration itself are unknown
// keys here.
func unlimited(c Call) bool {
	var conf struct {
		Runtime struct {
			Bandwidth map[string]uint64 `json:"bandwidth"`
		} `json:"runtimeConfig"`
	}
	if json.Unmarshal(c.Conf, &conf) != nil {
		return false
	}
	for _, v := range conf.Runtime.Bandwidth {
		if v != 0 {
			return false
		}
	}
	return true
}

// passOn is a plugin of a chain that has nothing to do.
func passOn(c Call) (*types100.Result, error) {
	var h head
	if err := json.Unmarshal(c.Conf, &h); err != nil {
		return nil, err
	}
	r, err := h.previous()
	if err == nil && r == nil {
		err = errors.New("must be called as a chained plugin")
	}
	return r, err
}

// deleteIFB takes away the interface through which bandwidth limits what a pod sends.
func deleteIFB(c Call) error {
	var h head
	if err := json.Unmarshal(c.Conf, &h); err != nil {
		return err
	}
	host, err := openSide()
	if err != nil {
		return err
	}
	defer host.close()
	name := hashed("bwp", h.Name, c.ContainerID, 15)
	index, err := host.index(name)
	if err != nil || index == 0 {
		return err
	}
	if err := host.LinkDel(numbered(name, index)); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	return nil
}
