package container

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/cli/client"
	"github.com/berthd/berth/cli/image"
	"github.com/berthd/berth/cli/session"
	"github.com/berthd/berth/cli/table"
)

// containerRow is a container as lists show it.
type containerRow struct {
	ID, Image, Command, CreatedAt, RunningFor, Status, State, Ports, Names, Size, Networks, Runtime string
	Pid                                                                                             uint32
	ExitCode                                                                                        uint32
	Labels                                                                                          map[string]string
	created                                                                                         time.Time
}

type ListOptions struct {
	All, NoTrunc, Size bool
	Filters            []string
}

func (a *app) psCommand() *cobra.Command {
	var o ListOptions
	var quiet, latest bool
	var last int
	var format string
	cmd := &cobra.Command{
		Use: "ps [flags]", Short: "List containers", Args: session.ExactArgs(0), Aliases: []string{"ls"},
		Example: `  berth ps
  berth ps -a --filter status=exited
  berth ps --format '{{.Names}}\t{{.Status}}'
  berth rm $(berth ps -aq)`,
		Long: `List containers: those that run, or with -a all.

Filters (--filter, all must hold): id=, name=, label=KEY[=VALUE], status=created|running|paused|exited, exited=CODE, ancestor=IMAGE.`,
	}
	cmd.RunE = a.Connected(func(ctx context.Context, c *client.Client, _ []string) error {
		if latest {
			last = 1
		}
		o.All = o.All || last > 0
		rows, err := List(ctx, c, o)
		if err != nil {
			return err
		}
		if last > 0 {
			rows = rows[:min(last, len(rows))]
		}
		if quiet {
			for _, r := range rows {
				fmt.Fprintln(a.Out, r.ID)
			}
			return nil
		}
		columns := []string{"CONTAINER ID=ID", "IMAGE", "COMMAND", "CREATED=RunningFor", "STATUS", "PORTS", "NAMES"}
		if o.Size {
			columns = append(columns, "SIZE")
		}
		return table.Write(a.Out, rows, format, table.Columns(columns...))
	})
	f := cmd.Flags()
	f.BoolVarP(&o.All, "all", "a", false, "also those that do not run")
	f.BoolVarP(&quiet, "quiet", "q", false, "print ids only")
	f.BoolVar(&o.NoTrunc, "no-trunc", false, "do not shorten")
	f.BoolVarP(&o.Size, "size", "s", false, "show how much each has written")
	f.BoolVarP(&latest, "latest", "l", false, "the newest only")
	f.IntVar(&last, "last", 0, "the newest `N` only")
	f.StringArrayVarP(&o.Filters, "filter", "f", nil, "`KEY=VALUE`, see above")
	f.StringVar(&format, "format", "", "table, json or a Go `template`")
	return cmd
}

// List asks twice: for the containers, and for all their tasks.
func List(ctx context.Context, c *client.Client, o ListOptions) ([]containerRow, error) {
	match, status, err := parseFilters(o.Filters)
	if err != nil {
		return nil, err
	}
	l, err := c.Containers().List(ctx, &containersapi.ListContainersRequest{})
	if err != nil {
		return nil, err
	}
	t, err := c.Tasks().List(ctx, &tasksapi.ListTasksRequest{})
	if err != nil {
		return nil, err
	}
	tasks := map[string]*task.Process{}
	for _, p := range t.GetTasks() {
		tasks[p.GetID()] = p
	}
	now := time.Now()
	var rows []containerRow
	for _, k := range l.GetContainers() {
		p := tasks[k.GetID()]
		if !o.All && !IsUp(p) && !status {
			continue
		}
		r := describeContainer(k, p, now, o.NoTrunc)
		if !match(k, r) {
			continue
		}
		if o.Size {
			r.Size = writtenSize(ctx, c, k)
		}
		rows = append(rows, r)
	}
	sort.SliceStable(rows, func(i, j int) bool { return rows[i].created.After(rows[j].created) })
	return rows, nil
}

func describeContainer(k *containersapi.Container, p *task.Process, now time.Time, noTrunc bool) containerRow {
	created := k.GetCreatedAt().AsTime()
	r := containerRow{
		ID: k.GetID(), Image: image.Familiar(k.GetImage()), Names: client.DisplayName(k), Labels: ownLabels(k.GetLabels()),
		Ports: portsText(k.GetLabels()[client.LabelPorts]), Networks: k.GetLabels()[client.LabelNetwork], Runtime: k.GetRuntime().GetName(),
		CreatedAt: created.Local().Format(time.RFC3339), RunningFor: table.Ago(created, now), Pid: p.GetPid(), ExitCode: p.GetExitStatus(), created: created,
	}
	r.State, r.Status = stateOf(p, now)
	r.Command = commandOf(k)
	if !noTrunc {
		r.ID = client.ShortID(r.ID)
		if runes := []rune(r.Command); len(runes) > 20 {
			r.Command = string(runes[:19]) + "…"
		}
	}
	r.Command = strconv.Quote(r.Command)
	return r
}

// stateOf says a task's state in Docker's words; without a task the container was
// only created, or this machine has been restarted since.
func stateOf(p *task.Process, now time.Time) (state, status string) {
	switch p.GetStatus() {
	case task.Status_RUNNING:
		return "running", strings.TrimSpace("Up " + uptime(p.GetPid(), now))
	case task.Status_PAUSED, task.Status_PAUSING:
		return "paused", strings.TrimSpace("Up "+uptime(p.GetPid(), now)) + " (Paused)"
	case task.Status_STOPPED:
		return "exited", strings.TrimSpace(fmt.Sprintf("Exited (%d) %s", p.GetExitStatus(), table.Ago(p.GetExitedAt().AsTime(), now)))
	case task.Status_UNKNOWN:
		if p != nil {
			return "unknown", "Unknown: its shim does not answer"
		}
	}
	return "created", "Created"
}

// uptime is how long a process has run, "" if it cannot be seen from here.
func uptime(pid uint32, now time.Time) string {
	t, ok := startTime(pid)
	if !ok {
		return ""
	}
	return table.Age(now.Sub(t))
}

// startTime reads when a process began (proc(5): stat field 22 counts ticks of
// 1/100 s since the boot).
func startTime(pid uint32) (time.Time, bool) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return time.Time{}, false
	}
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	if len(fields) < 20 {
		return time.Time{}, false
	}
	ticks, err := strconv.ParseInt(fields[19], 10, 64)
	if err != nil {
		return time.Time{}, false
	}
	var up, real unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &up) != nil || unix.ClockGettime(unix.CLOCK_REALTIME, &real) != nil {
		return time.Time{}, false
	}
	return time.Unix(0, real.Nano()-up.Nano()+ticks*int64(10*time.Millisecond)), true
}

// specOf reads a container's OCI spec; one that cannot be read is empty.
func specOf(k *containersapi.Container) *rspec.Spec {
	s := &rspec.Spec{}
	if json.Unmarshal(k.GetSpec().GetValue(), s) != nil || s.Process == nil {
		s.Process = &rspec.Process{}
	}
	return s
}

func commandOf(k *containersapi.Container) string { return strings.Join(specOf(k).Process.Args, " ") }

// portsText prints "8080:80/tcp" as Docker does: 0.0.0.0:8080->80/tcp.
func portsText(s string) string {
	if s == "" {
		return ""
	}
	var out []string
	for _, p := range strings.Split(s, ",") {
		i := strings.LastIndexByte(p, ':')
		if i < 0 {
			out = append(out, p)
			continue
		}
		host := p[:i]
		if !strings.Contains(host, ":") {
			host = "0.0.0.0:" + host
		}
		out = append(out, host+"->"+p[i+1:])
	}
	return strings.Join(out, ", ")
}

func writtenSize(ctx context.Context, c *client.Client, k *containersapi.Container) string {
	u, err := c.Snapshots().Usage(ctx, &snapshotsapi.UsageRequest{Snapshotter: k.GetSnapshotter(), Key: k.GetSnapshotKey()})
	if err != nil {
		return "-"
	}
	return table.Size(u.GetSize())
}

// parseFilters makes a condition of --filter; status tells that it asks for
// containers that do not run.
func parseFilters(list []string) (match func(*containersapi.Container, containerRow) bool, status bool, err error) {
	var all []func(*containersapi.Container, containerRow) bool
	var states []string
	for _, f := range list {
		k, v, _ := strings.Cut(f, "=")
		switch k {
		case "id":
			all = append(all, func(c *containersapi.Container, _ containerRow) bool { return strings.HasPrefix(c.GetID(), v) })
		case "name":
			all = append(all, func(_ *containersapi.Container, r containerRow) bool {
				return strings.Contains(r.Names, strings.TrimPrefix(v, "/"))
			})
		case "label":
			key, value, given := strings.Cut(v, "=")
			all = append(all, func(c *containersapi.Container, _ containerRow) bool {
				got, there := c.GetLabels()[key]
				return there && (!given || got == value)
			})
		case "status":
			if !slices.Contains([]string{"created", "running", "paused", "exited", "unknown"}, v) {
				return nil, false, errs.New(errs.InvalidArgument, "--filter %s: there are created, running, paused, exited and unknown", f)
			}
			status, states = true, append(states, v)
		case "exited":
			n, err := strconv.ParseUint(v, 10, 32)
			if err != nil {
				return nil, false, errs.New(errs.InvalidArgument, "--filter %s: the status must be a number", f)
			}
			status = true
			all = append(all, func(_ *containersapi.Container, r containerRow) bool {
				return r.State == "exited" && uint64(r.ExitCode) == n
			})
		case "ancestor":
			full, ferr := image.FullName(v)
			all = append(all, func(c *containersapi.Container, _ containerRow) bool {
				return c.GetImage() == v || ferr == nil && c.GetImage() == full
			})
		default:
			return nil, false, errs.New(errs.InvalidArgument, "--filter %q is not known; there are id, name, label, status, exited and ancestor", f)
		}
	}
	return func(c *containersapi.Container, r containerRow) bool {
		if len(states) > 0 && !slices.Contains(states, r.State) {
			return false
		}
		for _, f := range all {
			if !f(c, r) {
				return false
			}
		}
		return true
	}, status, nil
}
