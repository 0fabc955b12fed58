// Package container holds the verbs of containers, from run to rm. What a container
// is called, where its log is and how it is to be stopped is in its labels.
package container

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	"github.com/spf13/cobra"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/cli/client"
	"github.com/berthd/berth/cli/session"
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

// Find looks a container up by id, by name, or by the beginning of its id.
func Find(ctx context.Context, c *client.Client, ref string) (*containersapi.Container, error) {
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
		ids = append(ids, client.ShortID(m.GetID()))
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
	for _, l := range client.NameLabels {
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
		case client.DisplayName(k) == ref:
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
	for _, ns := range c.OtherNamespaces(ctx) {
		if m, err := matchContainers(ctx, c.In(ns), ref); err == nil && len(m) > 0 {
			return errs.New(errs.NotFound, "no such container: %s; it exists in namespace %s; use -n %s", ref, ns, ns)
		}
	}
	return errs.New(errs.NotFound, "no such container: %s; `berth ps -a` lists what there is", ref)
}

// TaskOf returns the task of a container, nil if it has none.
func TaskOf(ctx context.Context, c *client.Client, id string) (*task.Process, error) {
	r, err := c.Tasks().Get(ctx, &tasksapi.GetRequest{ContainerID: id})
	if errs.Is(err, errs.NotFound) {
		return nil, nil
	}
	return r.GetProcess(), err
}

func IsUp(p *task.Process) bool {
	switch p.GetStatus() {
	case task.Status_RUNNING, task.Status_PAUSED, task.Status_PAUSING:
		return true
	}
	return false
}

// running is the task of a container that must run.
func running(ctx context.Context, c *client.Client, k *containersapi.Container) (*task.Process, error) {
	p, err := TaskOf(ctx, c, k.GetID())
	if err != nil {
		return nil, err
	}
	if !IsUp(p) {
		return nil, errs.New(errs.FailedPrecondition, "container %s is not running; start it with `berth start %s`", client.DisplayName(k), client.DisplayName(k))
	}
	return p, nil
}

// completeContainers completes names of containers; up narrows it to those that run.
func (a *app) completeContainers(up bool) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return func(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
		return a.Complete(cmd, word, func(ctx context.Context, c *client.Client) ([]string, error) {
			rows, err := List(ctx, c, ListOptions{All: !up})
			var out []string
			for _, r := range rows {
				out = append(out, r.Names)
			}
			return out, err
		})
	}
}

// CompleteNamespaces completes the names of namespaces.
func CompleteNamespaces(s *session.App) session.Completion {
	return func(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
		return s.Complete(cmd, word, func(ctx context.Context, c *client.Client) ([]string, error) {
			return append(c.OtherNamespaces(ctx), c.Namespace), nil
		})
	}
}
