// Package pod holds the verbs of pods and networks. It speaks the CRI, as a kubelet
// does, and can run a Pod manifest where there is no cluster.
package pod

import (
	"context"
	"fmt"
	"sort"
	"strings"
	"time"

	"github.com/spf13/cobra"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/cli/client"
	"github.com/berthd/berth/cli/session"
	"github.com/berthd/berth/cli/table"
)

// app is one call of the program.
type app struct{ *session.App }

// Commands are the verbs of pods and networks.
func Commands(s *session.App) []*cobra.Command {
	a := &app{s}
	pod := session.Noun("pod", "Work with one pod", nil, a.runCommand(), a.inspectCommand(), a.logsCommand(), a.execCommand(), a.stopCommand(), a.rmCommand(), a.statsCommand(), a.lsCommand("ls"))
	pod.Long = "Work with one pod: by its id, the beginning of it, its name, or NAMESPACE/NAME."
	return []*cobra.Command{a.lsCommand("pods"), pod, a.networkCommand()}
}

// kubernetes is the namespace of what a kubelet makes.
const kubernetes = "k8s.io"

// connected is session.Connected with the namespace of pods: Kubernetes' unless the
// user says another.
func (a *app) connected(fn session.Verb) session.Run {
	return a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		ns := kubernetes
		if a.Given {
			ns = a.Namespace
		}
		return fn(ctx, c.In(ns).WithOwnPods(), args)
	})
}

// podRow is a pod as lists show it.
type podRow struct {
	ID, Name, Namespace, State, Created, Age, Runtime, Containers string
	Attempt                                                       uint32
	Labels                                                        map[string]string
	at                                                            int64
}

func (a *app) lsCommand(use string) *cobra.Command {
	var l session.Listing
	var noTrunc bool
	var state string
	var labels []string
	cmd := l.Add(&cobra.Command{
		Use: use, Short: "List pods", Args: session.ExactArgs(0), Example: "  berth pods\n  berth pods --state ready --label app=web -q",
	}, false)
	cmd.RunE = a.connected(func(ctx context.Context, c *client.Client, _ []string) error {
		filter := &cri.PodSandboxFilter{LabelSelector: map[string]string{}}
		switch state {
		case "":
		case "ready":
			filter.State = &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY}
		case "notready":
			filter.State = &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_NOTREADY}
		default:
			return errs.New(errs.InvalidArgument, "--state %s: there are ready and notready", state)
		}
		for _, s := range labels {
			k, v, _ := strings.Cut(s, "=")
			filter.LabelSelector[k] = v
		}
		rows, err := listPods(ctx, c, filter, noTrunc)
		if err != nil {
			return err
		}
		return session.Print(a.App, l, rows, func(r podRow) string { return r.ID }, "POD ID=ID", "NAMESPACE", "NAME", "STATE", "CONTAINERS", "CREATED=Age", "ATTEMPT")
	})
	cmd.Flags().BoolVar(&noTrunc, "no-trunc", false, "do not shorten ids")
	cmd.Flags().StringVar(&state, "state", "", "only in this `STATE`: ready or notready")
	cmd.Flags().StringArrayVarP(&labels, "label", "l", nil, "only with this label (`KEY=VALUE`)")
	return cmd
}

func listPods(ctx context.Context, c *client.Client, filter *cri.PodSandboxFilter, noTrunc bool) ([]podRow, error) {
	r, err := c.Pods().ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: filter})
	if err != nil {
		return nil, err
	}
	k, err := c.Pods().ListContainers(ctx, &cri.ListContainersRequest{})
	if err != nil {
		return nil, err
	}
	all, up := map[string]int{}, map[string]int{}
	for _, x := range k.GetContainers() {
		all[x.GetPodSandboxId()]++
		if x.GetState() == cri.ContainerState_CONTAINER_RUNNING {
			up[x.GetPodSandboxId()]++
		}
	}
	var rows []podRow
	for _, p := range r.GetItems() {
		at := time.Unix(0, p.GetCreatedAt())
		row := podRow{
			ID: p.GetId(), Name: p.GetMetadata().GetName(), Namespace: p.GetMetadata().GetNamespace(), State: stateText(p.GetState()),
			Created: at.Format(time.RFC3339), Age: table.Ago(at, time.Now()), Runtime: p.GetRuntimeHandler(), Attempt: p.GetMetadata().GetAttempt(),
			Labels: p.GetLabels(), at: p.GetCreatedAt(), Containers: fmt.Sprintf("%d/%d", up[p.GetId()], all[p.GetId()]),
		}
		if !noTrunc {
			row.ID = client.ShortID(row.ID)
		}
		rows = append(rows, row)
	}
	sort.SliceStable(rows, func(i, j int) bool { return rows[i].at > rows[j].at })
	return rows, nil
}

func stateText(s cri.PodSandboxState) string {
	if s == cri.PodSandboxState_SANDBOX_READY {
		return "Ready"
	}
	return "NotReady"
}

// findPod looks a pod up by id, name, NAMESPACE/NAME or the beginning of its id. Of
// several attempts the newest counts.
func findPod(ctx context.Context, c *client.Client, ref string) (*cri.PodSandbox, error) {
	r, err := c.Pods().ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return nil, err
	}
	var named, begun []*cri.PodSandbox
	for _, p := range r.GetItems() {
		m := p.GetMetadata()
		switch {
		case p.GetId() == ref:
			return p, nil
		case m.GetName() == ref, m.GetNamespace()+"/"+m.GetName() == ref:
			named = append(named, p)
		case strings.HasPrefix(p.GetId(), ref):
			begun = append(begun, p)
		}
	}
	if len(named) == 0 {
		named = begun
		if len(begun) > 1 {
			return nil, errs.New(errs.InvalidArgument, "pod %q: several ids begin so; give more of it", ref)
		}
	}
	var best *cri.PodSandbox
	for _, p := range named {
		if best != nil && (best.GetMetadata().GetNamespace() != p.GetMetadata().GetNamespace() || best.GetMetadata().GetUid() != p.GetMetadata().GetUid()) {
			return nil, errs.New(errs.InvalidArgument, "pod %q: there are several; say NAMESPACE/NAME or the id", ref)
		}
		if best == nil || p.GetCreatedAt() > best.GetCreatedAt() {
			best = p
		}
	}
	if best == nil {
		return nil, errs.New(errs.NotFound, "no such pod: %s; `berth pods` lists what there is", ref)
	}
	return best, nil
}

// containersOf lists a pod's containers, the oldest first.
func containersOf(ctx context.Context, c *client.Client, pod string) ([]*cri.Container, error) {
	r, err := c.Pods().ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{PodSandboxId: pod}})
	if err != nil {
		return nil, err
	}
	out := r.GetContainers()
	sort.SliceStable(out, func(i, j int) bool { return out[i].GetCreatedAt() < out[j].GetCreatedAt() })
	return out, nil
}

// pick finds the one container that is meant: the named one, or the only or first.
func (a *app) pick(ctx context.Context, c *client.Client, p *cri.PodSandbox, name string, up bool) (*cri.Container, error) {
	all, err := containersOf(ctx, c, p.GetId())
	if err != nil {
		return nil, err
	}
	var found *cri.Container
	var names []string
	for _, k := range all {
		names = append(names, k.GetMetadata().GetName())
		if name != "" && k.GetMetadata().GetName() != name && k.GetId() != name || up && k.GetState() != cri.ContainerState_CONTAINER_RUNNING {
			continue
		}
		if found == nil || name != "" { // of several attempts the newest
			found = k
		}
	}
	if found == nil {
		what := "has no container"
		if name != "" {
			what += " " + name
		}
		if up {
			what += " that runs"
		}
		return nil, errs.New(errs.NotFound, "pod %s %s; it has: %s", p.GetMetadata().GetName(), what, strings.Join(names, " "))
	}
	if name == "" && len(all) > 1 {
		a.Debugf("container %s of %s", found.GetMetadata().GetName(), strings.Join(names, " "))
	}
	return found, nil
}

func (a *app) completePods(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
	return a.Complete(cmd, word, func(ctx context.Context, c *client.Client) ([]string, error) {
		ns := kubernetes
		if a.Given {
			ns = a.Namespace
		}
		rows, err := listPods(ctx, c.In(ns).WithOwnPods(), nil, true)
		var out []string
		for _, r := range rows {
			out = append(out, r.Name)
		}
		return out, err
	})
}
