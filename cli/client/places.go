package client

import (
	"context"
	"path/filepath"

	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"

	"github.com/berthd/berth/base/errs"
)

// Places are the daemon's directories on this machine.
type Places struct{ Root, State string }

// TaskPlugin is the type of the plugin that says them.
const TaskPlugin = "io.containerd.runtime.v2"

// Places asks the daemon where it keeps things, once.
func (c *Client) Places(ctx context.Context) (Places, error) {
	c.known.mu.Lock()
	defer c.known.mu.Unlock()
	if c.known.places != (Places{}) {
		return c.known.places, nil
	}
	r, err := c.Introspection().Plugins(ctx, &introspectionapi.PluginsRequest{Filters: []string{"type==" + TaskPlugin}})
	if err != nil {
		return Places{}, err
	}
	for _, p := range r.GetPlugins() {
		e := p.GetExports()
		if root, state := e["root"], e["state"]; root != "" && state != "" {
			c.known.places = Places{root, state}
			return c.known.places, nil
		}
	}
	return Places{}, errs.New(errs.Unimplemented, "the daemon at %s does not say where it keeps its state: is it berth?", c.Address)
}

// Bundle is the directory of a task, which holds the shim's sockets.
func (p Places) Bundle(namespace, id string) string {
	return filepath.Join(p.State, TaskPlugin+".task", namespace, id)
}

// Dir is where the command line keeps a container's files; without an id, those of
// all.
func (p Places) Dir(id string) string { return filepath.Join(p.Root, "containers", id) }

// Volume is the directory of a named volume; without a name, that of a namespace's
// volumes.
func (p Places) Volume(namespace, name string) string {
	return filepath.Join(p.Root, "volumes", namespace, name)
}
