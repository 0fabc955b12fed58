package cli

import (
	"context"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	"github.com/spf13/cobra"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/cli/client"
)

// Labels by which the command line keeps what containerd's API has no field for.
const (
	labelName       = "berth.dev/name"        // as people call it
	labelDir        = "berth.dev/dir"         // log, hosts, hostname and resolv.conf
	labelLog        = "berth.dev/log"         // address of stdout and stderr for the shim
	labelStdin      = "berth.dev/stdin"       // address of stdin for the shim
	labelAutoRemove = "berth.dev/auto-remove" // the daemon removes it when it has ended
	labelStopSignal = "berth.dev/stop-signal"
	labelStopTime   = "berth.dev/stop-timeout" // seconds
	labelNetwork    = "berth.dev/network"      // host, none, or names
	labelPod        = "berth.dev/pod"          // id of the pod that is its network
	labelPorts      = "berth.dev/ports"        // as -p has them, with commas
	labelPlatform   = "berth.dev/platform"     // of the image, where one was asked for

	restartStatus  = "containerd.io/restart.status"
	restartPolicy  = "containerd.io/restart.policy"
	restartCount   = "containerd.io/restart.count"
	restartStopped = "containerd.io/restart.explicitly-stopped"
	restartLog     = "containerd.io/restart.loguri"

	criContainerName = "io.kubernetes.container.name"
)

// ownLabels are left out where a user asks for labels.
func ownLabels(all map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range all {
		if !strings.HasPrefix(k, "berth.dev/") && !strings.HasPrefix(k, "containerd.io/restart.") {
			out[k] = v
		}
	}
	return out
}

// displayName is what a container is called in lists and messages.
func displayName(k *containersapi.Container) string {
	for _, l := range []string{labelName, "nerdctl/name", criContainerName} {
		if n := k.GetLabels()[l]; n != "" {
			return n
		}
	}
	return k.GetID()
}

func shortID(id string) string {
	if len(id) == 64 {
		return id[:12]
	}
	return id
}

// findContainer looks a container up by id, by name, or by the beginning of its id.
func findContainer(ctx context.Context, c *client.Client, ref string) (*containersapi.Container, error) {
	matches, err := matchContainers(ctx, c, ref)
	if err != nil {
		return nil, err
	}
	switch len(matches) {
	case 1:
		return matches[0], nil
	case 0:
		return nil, noContainer(ctx, c, ref)
	}
	var ids []string
	for _, m := range matches {
		ids = append(ids, shortID(m.GetID()))
	}
	return nil, errs.New(errs.InvalidArgument, "container %q: several begin so or are called so: %s; give more of the id", ref, strings.Join(ids, " "))
}

// matchContainers returns the best kind of match: id, else names, else prefixes.
func matchContainers(ctx context.Context, c *client.Client, ref string) ([]*containersapi.Container, error) {
	if ref == "" {
		return nil, errs.New(errs.InvalidArgument, "a container's name or id must not be empty")
	}
	quoted := fmt.Sprintf("%q", ref)
	filters := []string{"id==" + quoted, "id~=" + fmt.Sprintf("%q", "^"+regexp.QuoteMeta(ref))}
	for _, l := range []string{labelName, "nerdctl/name", criContainerName} {
		filters = append(filters, fmt.Sprintf("labels.%q==%s", l, quoted))
	}
	l, err := c.Containers().List(ctx, &containersapi.ListContainersRequest{Filters: filters})
	if err != nil {
		return nil, err
	}
	var names, prefixes []*containersapi.Container
	for _, k := range l.GetContainers() {
		switch {
		case k.GetID() == ref:
			return []*containersapi.Container{k}, nil
		case displayName(k) == ref:
			names = append(names, k)
		default:
			prefixes = append(prefixes, k)
		}
	}
	if len(names) > 0 {
		return names, nil
	}
	return prefixes, nil
}

// noContainer says where else the container is.
func noContainer(ctx context.Context, c *client.Client, ref string) error {
	for _, ns := range otherNamespaces(ctx, c) {
		if m, err := matchContainers(ctx, c.In(ns), ref); err == nil && len(m) > 0 {
			return errs.New(errs.NotFound, "no such container: %s; it exists in namespace %s; use -n %s", ref, ns, ns)
		}
	}
	return errs.New(errs.NotFound, "no such container: %s; `berth ps -a` lists what there is", ref)
}

// otherNamespaces lists the namespaces but the client's own, for hints only.
func otherNamespaces(ctx context.Context, c *client.Client) []string {
	l, err := c.Namespaces().List(ctx, &namespacesapi.ListNamespacesRequest{})
	if err != nil {
		return nil
	}
	var out []string
	for _, n := range l.GetNamespaces() {
		if n.GetName() != c.Namespace {
			out = append(out, n.GetName())
		}
	}
	slices.Sort(out)
	return out
}

// taskOf returns the task of a container, nil if it has none.
func taskOf(ctx context.Context, c *client.Client, id string) (*task.Process, error) {
	r, err := c.Tasks().Get(ctx, &tasksapi.GetRequest{ContainerID: id})
	if errs.Is(err, errs.NotFound) {
		return nil, nil
	}
	return r.GetProcess(), err
}

func isUp(p *task.Process) bool {
	switch p.GetStatus() {
	case task.Status_RUNNING, task.Status_PAUSED, task.Status_PAUSING:
		return true
	}
	return false
}

// running is the task of a container that must run.
func running(ctx context.Context, c *client.Client, k *containersapi.Container) (*task.Process, error) {
	p, err := taskOf(ctx, c, k.GetID())
	if err != nil {
		return nil, err
	}
	if !isUp(p) {
		return nil, errs.New(errs.FailedPrecondition, "container %s is not running; start it with `berth start %s`", displayName(k), displayName(k))
	}
	return p, nil
}

// places are the daemon's directories on this machine.
type places struct{ root, state string }

const taskPlugin = "io.containerd.runtime.v2"

// findPlaces asks the daemon where it keeps things.
func findPlaces(ctx context.Context, c *client.Client) (places, error) {
	r, err := c.Introspection().Plugins(ctx, &introspectionapi.PluginsRequest{Filters: []string{"type==" + taskPlugin}})
	if err != nil {
		return places{}, err
	}
	for _, p := range r.GetPlugins() {
		e := p.GetExports()
		if root, state := e["root"], e["state"]; root != "" && state != "" {
			return places{root, state}, nil
		}
	}
	return places{}, errs.New(errs.Unimplemented, "the daemon at %s does not say where it keeps its state: is it berth?", c.Address)
}

// bundle is the directory of a task, which holds the shim's sockets.
func (p places) bundle(namespace, id string) string {
	return filepath.Join(p.state, "io.containerd.runtime.v2.task", namespace, id)
}

// dir is where the command line keeps a container's files.
func (p places) dir(namespace, id string) string {
	return filepath.Join(p.root, "containers", namespace, id)
}

func dirOf(name string) string { return filepath.Dir(name) }

// completeContainers completes names of containers; up narrows it to those that run.
func (a *app) completeContainers(up bool) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return func(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
		return a.complete(cmd, word, func(ctx context.Context, c *client.Client) ([]string, error) {
			rows, err := listContainers(ctx, c, listOptions{all: !up})
			var out []string
			for _, r := range rows {
				out = append(out, r.Names)
			}
			return out, err
		})
	}
}

func (a *app) completeNamespaces(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
	return a.complete(cmd, word, func(ctx context.Context, c *client.Client) ([]string, error) {
		return append(otherNamespaces(ctx, c), c.Namespace), nil
	})
}
