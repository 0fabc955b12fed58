// Package plumb holds the commands for those who know ctr: the daemon's namespaces,
// leases, content, snapshots, containers and tasks as its API has them.
package plumb

import (
	"context"
	"encoding/json"
	"fmt"
	"sort"
	"strings"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/id"
	"github.com/berthd/berth/cli/client"
	"github.com/berthd/berth/cli/container"
	"github.com/berthd/berth/cli/session"
	"github.com/berthd/berth/cli/spec"
	"github.com/berthd/berth/cli/table"
)

// app is one call of the program.
type app struct{ *session.App }

// Commands are the nouns of the daemon's own API.
func Commands(s *session.App) []*cobra.Command {
	a := &app{s}
	return []*cobra.Command{a.containersCommand(), a.tasksCommand(), a.contentCommand(), a.snapshotsCommand(), a.leasesCommand(), a.namespacesCommand()}
}

// labelText prints labels as KEY=VALUE with commas.
func labelText(m map[string]string) string {
	var out []string
	for _, k := range session.Keys(m) {
		out = append(out, k+"="+m[k])
	}
	if out == nil {
		return "-"
	}
	return strings.Join(out, ",")
}

// labelPaths are the field mask of a change of labels, where an empty value
// removes one.
func labelPaths(list []string) (map[string]string, *fieldmaskpb.FieldMask, error) {
	m, err := spec.Pairs("label", list)
	mask := &fieldmaskpb.FieldMask{}
	for _, k := range session.Keys(m) {
		mask.Paths = append(mask.Paths, "labels."+k)
	}
	return m, mask, err
}

type namespaceRow struct {
	Name   string
	Labels string
}

func (a *app) namespacesCommand() *cobra.Command {
	var l session.Listing
	ls := l.Add(&cobra.Command{Use: "ls", Short: "List namespaces", Args: session.ExactArgs(0), Example: "  berth namespaces ls"}, false)
	ls.RunE = a.Connected(func(ctx context.Context, c *client.Client, _ []string) error {
		r, err := c.Namespaces().List(ctx, &namespacesapi.ListNamespacesRequest{})
		if err != nil {
			return err
		}
		var rows []namespaceRow
		for _, n := range r.GetNamespaces() {
			rows = append(rows, namespaceRow{n.GetName(), labelText(n.GetLabels())})
		}
		sort.Slice(rows, func(i, j int) bool { return rows[i].Name < rows[j].Name })
		return session.Print(a.App, l, rows, func(r namespaceRow) string { return r.Name }, "NAME", "LABELS")
	})
	create := &cobra.Command{Use: "create NAME [KEY=VALUE...]", Short: "Make a namespace", Args: session.MinArgs(1), Example: "  berth namespaces create ci team=blue"}
	create.RunE = a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		labels, err := spec.Pairs("label", args[1:])
		if err != nil {
			return err
		}
		_, err = c.Namespaces().Create(ctx, &namespacesapi.CreateNamespaceRequest{Namespace: &namespacesapi.Namespace{Name: args[0], Labels: labels}})
		return err
	})
	label := &cobra.Command{Use: "label NAME KEY=VALUE...", Short: "Set labels; an empty value removes one", Args: session.MinArgs(2), ValidArgsFunction: container.CompleteNamespaces(a.App)}
	label.RunE = a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		labels, mask, err := labelPaths(args[1:])
		if err != nil {
			return err
		}
		_, err = c.Namespaces().Update(ctx, &namespacesapi.UpdateNamespaceRequest{Namespace: &namespacesapi.Namespace{Name: args[0], Labels: labels}, UpdateMask: mask})
		return err
	})
	rm := &cobra.Command{Use: "rm NAME...", Short: "Remove namespaces that are empty", Args: session.MinArgs(1), Aliases: []string{"remove"}, ValidArgsFunction: container.CompleteNamespaces(a.App)}
	rm.RunE = a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		return a.ForEach(args, func(ref string) error {
			_, err := c.Namespaces().Delete(ctx, &namespacesapi.DeleteNamespaceRequest{Name: ref})
			return err
		})
	})
	return session.Noun("namespaces", "Work with namespaces", []string{"namespace", "ns"}, ls, create, label, rm)
}

type leaseRow struct{ ID, Created, Labels string }

func (a *app) leasesCommand() *cobra.Command {
	var l session.Listing
	ls := l.Add(&cobra.Command{Use: "ls", Short: "List leases", Args: session.ExactArgs(0), Example: "  berth leases ls"}, true)
	ls.RunE = a.Connected(func(ctx context.Context, c *client.Client, _ []string) error {
		r, err := c.Leases().List(ctx, &leasesapi.ListRequest{Filters: l.Filters})
		if err != nil {
			return err
		}
		var rows []leaseRow
		for _, n := range r.GetLeases() {
			rows = append(rows, leaseRow{n.GetID(), n.GetCreatedAt().AsTime().Local().Format(time.RFC3339), labelText(n.GetLabels())})
		}
		return session.Print(a.App, l, rows, func(r leaseRow) string { return r.ID }, "LEASE ID=ID", "CREATED AT=Created", "LABELS")
	})
	var name string
	var expires time.Duration
	create := &cobra.Command{Use: "create [KEY=VALUE...]", Short: "Make a lease and print its id", Args: session.MinArgs(0), Example: "  berth leases create --id keep --expires 2h"}
	create.RunE = a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		labels, err := spec.Pairs("label", args)
		if err != nil {
			return err
		}
		if name == "" {
			name = id.New(8)
		}
		if expires > 0 {
			labels["containerd.io/gc.expire"] = time.Now().Add(expires).UTC().Format(time.RFC3339)
		}
		r, err := c.Leases().Create(ctx, &leasesapi.CreateRequest{ID: name, Labels: labels})
		if err == nil {
			fmt.Fprintln(a.Out, r.GetLease().GetID())
		}
		return err
	})
	create.Flags().StringVar(&name, "id", "", "`id` (default: one is made up)")
	create.Flags().DurationVarP(&expires, "expires", "x", 24*time.Hour, "how long it lasts; 0 for ever")
	var sync bool
	rm := &cobra.Command{Use: "rm LEASE...", Short: "Remove leases; what only they held goes", Args: session.MinArgs(1), Aliases: []string{"delete", "remove"}}
	rm.RunE = a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		return a.ForEach(args, func(ref string) error {
			_, err := c.Leases().Delete(ctx, &leasesapi.DeleteRequest{ID: ref, Sync: sync})
			return err
		})
	})
	rm.Flags().BoolVar(&sync, "sync", false, "wait until what they held is deleted")
	return session.Noun("leases", "Work with leases, which keep content and snapshots", []string{"lease"}, ls, create, rm)
}

type plainContainerRow struct{ ID, Image, Runtime string }

func (a *app) containersCommand() *cobra.Command {
	var l session.Listing
	ls := l.Add(&cobra.Command{Use: "ls", Short: "List containers as the daemon keeps them", Args: session.ExactArgs(0), Example: "  berth containers ls -q"}, true)
	ls.RunE = a.Connected(func(ctx context.Context, c *client.Client, _ []string) error {
		r, err := c.Containers().List(ctx, &containersapi.ListContainersRequest{Filters: l.Filters})
		if err != nil {
			return err
		}
		var rows []plainContainerRow
		for _, k := range r.GetContainers() {
			image := k.GetImage()
			if image == "" {
				image = "-"
			}
			rows = append(rows, plainContainerRow{k.GetID(), image, k.GetRuntime().GetName()})
		}
		return session.Print(a.App, l, rows, func(r plainContainerRow) string { return r.ID }, "CONTAINER=ID", "IMAGE", "RUNTIME")
	})
	var onlySpec bool
	info := &cobra.Command{Use: "info CONTAINER", Short: "Show one as the daemon keeps it", Args: session.ExactArgs(1), Example: "  berth containers info --spec web"}
	info.RunE = a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		k, err := container.Find(ctx, c, args[0])
		if err != nil {
			return err
		}
		var v any = json.RawMessage(k.GetSpec().GetValue())
		if !onlySpec {
			v = struct {
				*containersapi.Container
				Spec any
			}{k, v}
		}
		return a.JSON(v)
	})
	info.Flags().BoolVar(&onlySpec, "spec", false, "its OCI configuration only")
	label := &cobra.Command{Use: "label CONTAINER KEY=VALUE...", Short: "Set labels; an empty value removes one", Args: session.MinArgs(2)}
	label.RunE = a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		k, err := container.Find(ctx, c, args[0])
		if err != nil {
			return err
		}
		change, _, err := labelPaths(args[1:])
		if err != nil {
			return err
		}
		return container.Relabel(ctx, c, k, change)
	})
	rm := &cobra.Command{
		Use: "rm CONTAINER...", Short: "Remove containers that do not run, with their snapshots", Args: session.MinArgs(1), Aliases: []string{"delete", "remove"},
		RunE: container.Each(a.App, func(ctx context.Context, c *client.Client, k *containersapi.Container) error {
			return container.Remove(ctx, a.App, c, k, false)
		}),
	}
	return session.Noun("containers", "Work with the daemon's containers", []string{"container", "c"}, ls, info, label, rm)
}

type taskRow struct {
	ID     string
	Pid    uint32
	Status string
}

func (a *app) tasksCommand() *cobra.Command {
	var l session.Listing
	ls := l.Add(&cobra.Command{Use: "ls", Short: "List tasks", Args: session.ExactArgs(0), Example: "  berth tasks ls"}, false)
	ls.RunE = a.Connected(func(ctx context.Context, c *client.Client, _ []string) error {
		r, err := c.Tasks().List(ctx, &tasksapi.ListTasksRequest{})
		if err != nil {
			return err
		}
		var rows []taskRow
		for _, p := range r.GetTasks() {
			rows = append(rows, taskRow{p.GetID(), p.GetPid(), p.GetStatus().String()})
		}
		return session.Print(a.App, l, rows, func(r taskRow) string { return r.ID }, "TASK=ID", "PID", "STATUS")
	})
	ps := &cobra.Command{Use: "ps TASK", Short: "List the processes of a task", Args: session.ExactArgs(1), Example: "  berth tasks ps ID"}
	ps.RunE = a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		k, err := container.Find(ctx, c, args[0])
		if err != nil {
			return err
		}
		r, err := c.Tasks().ListPids(ctx, &tasksapi.ListPidsRequest{ContainerID: k.GetID()})
		if err != nil {
			return err
		}
		var rows []pidRow
		for _, p := range r.GetProcesses() {
			row := pidRow{p.GetPid(), "-"}
			if m, err := p.GetInfo().UnmarshalNew(); err == nil {
				row.Info = protojson.Format(m)
			}
			rows = append(rows, row)
		}
		return table.Write(a.Out, rows, "", table.Columns("PID", "INFO"))
	})
	var signal, execID string
	var all bool
	killTask := &cobra.Command{Use: "kill TASK", Short: "Signal a task, or an exec of it", Args: session.ExactArgs(1), Example: "  berth tasks kill -s HUP ID"}
	killTask.RunE = a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		k, err := container.Find(ctx, c, args[0])
		if err != nil {
			return err
		}
		sig, err := container.ParseSignal(signal)
		if err != nil {
			return err
		}
		_, err = c.Tasks().Kill(ctx, &tasksapi.KillRequest{ContainerID: k.GetID(), ExecID: execID, Signal: uint32(sig), All: all})
		return err
	})
	killTask.Flags().StringVarP(&signal, "signal", "s", "TERM", "`signal` by name or number")
	killTask.Flags().StringVar(&execID, "exec-id", "", "`id` of an exec")
	killTask.Flags().BoolVarP(&all, "all", "a", false, "every process")
	var force bool
	rm := &cobra.Command{Use: "rm TASK...", Short: "Remove tasks that have ended", Args: session.MinArgs(1), Aliases: []string{"delete", "remove"}}
	rm.RunE = container.Each(a.App, func(ctx context.Context, c *client.Client, k *containersapi.Container) error {
		if p, err := container.TaskOf(ctx, c, k.GetID()); err != nil {
			return err
		} else if container.IsUp(p) && force {
			if err := container.KillHard(ctx, c, k.GetID()); err != nil {
				return err
			}
		} else if container.IsUp(p) {
			return errs.New(errs.FailedPrecondition, "task %s runs: end it with `berth tasks kill`, or use -f", k.GetID())
		}
		_, err := c.Tasks().Delete(ctx, &tasksapi.DeleteTaskRequest{ContainerID: k.GetID()})
		return err
	})
	rm.Flags().BoolVarP(&force, "force", "f", false, "kill those that run")
	info := &cobra.Command{Use: "info TASK", Short: "Show a task's state", Args: session.ExactArgs(1)}
	info.RunE = a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		k, err := container.Find(ctx, c, args[0])
		if err != nil {
			return err
		}
		r, err := c.Tasks().Get(ctx, &tasksapi.GetRequest{ContainerID: k.GetID()})
		if err != nil {
			return err
		}
		return a.JSON(r.GetProcess())
	})
	return session.Noun("tasks", "Work with tasks: the running side of containers", []string{"task", "t"}, ls, ps, info, killTask, rm)
}

type pidRow struct {
	Pid  uint32
	Info string
}
