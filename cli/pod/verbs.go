package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/cli/client"
	"github.com/berthd/berth/cli/container"
	"github.com/berthd/berth/cli/session"
	"github.com/berthd/berth/cli/table"
)

// podInfo is a pod as inspect shows it, in the CRI's words.
type podInfo struct {
	Status     any            `json:"status"`
	Info       map[string]any `json:"info,omitempty"`
	Containers []any          `json:"containers"`
}

// plain turns a message into what JSON and templates show.
func plain(m proto.Message) any {
	var v any
	b, err := protojson.Marshal(m)
	if err != nil || json.Unmarshal(b, &v) != nil {
		return nil
	}
	return v
}

func plainInfo(m map[string]string) map[string]any {
	out := map[string]any{}
	for k, s := range m {
		var v any
		if json.Unmarshal([]byte(s), &v) != nil {
			v = s
		}
		out[k] = v
	}
	return out
}

func (a *app) inspectCommand() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "inspect POD...", Short: "Show everything about pods and their containers", Args: session.MinArgs(1), ValidArgsFunction: a.completePods,
		Example: "  berth pod inspect web\n  berth pod inspect -f '{{.Status.network.ip}}' web",
	}
	cmd.RunE = a.connected(func(ctx context.Context, c *client.Client, args []string) error {
		var out []any
		for _, ref := range args {
			p, err := findPod(ctx, c, ref)
			if err != nil {
				return err
			}
			s, err := c.Pods().PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.GetId(), Verbose: true})
			if err != nil {
				return err
			}
			info := podInfo{Status: plain(s.GetStatus()), Info: plainInfo(s.GetInfo())}
			all, err := containersOf(ctx, c, p.GetId())
			if err != nil {
				return err
			}
			for _, k := range all {
				ks, err := c.Pods().ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: k.GetId()})
				if err != nil {
					return err
				}
				info.Containers = append(info.Containers, plain(ks.GetStatus()))
			}
			out = append(out, info)
		}
		return a.Objects(out, format)
	})
	cmd.Flags().StringVarP(&format, "format", "f", "", "a Go `template` instead of JSON")
	return cmd
}

func (a *app) logsCommand() *cobra.Command {
	var l container.LogFlags
	var name string
	cmd := &cobra.Command{
		Use: "logs [flags] POD", Short: "Show what a container of a pod has written", Args: session.ExactArgs(1), ValidArgsFunction: a.completePods,
		Example: "  berth pod logs web\n  berth pod logs -f -c sidecar web",
	}
	cmd.RunE = a.connected(func(ctx context.Context, c *client.Client, args []string) error {
		p, err := findPod(ctx, c, args[0])
		if err != nil {
			return err
		}
		k, err := a.pick(ctx, c, p, name, false)
		if err != nil {
			return err
		}
		s, err := c.Pods().ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: k.GetId()})
		if err != nil {
			return err
		}
		path := s.GetStatus().GetLogPath()
		if path == "" {
			return errs.New(errs.FailedPrecondition, "container %s of the pod was made without a log", k.GetMetadata().GetName())
		}
		ended := make(chan struct{})
		if l.Follow {
			// owner: it ends when the container does, or with ctx.
			go func() {
				defer close(ended)
				waitTask(ctx, c, k.GetId())
			}()
		}
		return l.Print(ctx, path, a.Out, a.Err, ended)
	})
	l.Add(cmd)
	cmd.Flags().StringVarP(&name, "container", "c", "", "`name` of the container (default: the first)")
	return cmd
}

// lastLines is how long after a container's end its last lines may come.
const lastLines = 200 * time.Millisecond

// waitTask waits until a container of a pod has ended and its log is written.
func waitTask(ctx context.Context, c *client.Client, id string) {
	if _, err := c.Tasks().Wait(ctx, &tasksapi.WaitRequest{ContainerID: id}); err == nil {
		select {
		case <-time.After(lastLines):
		case <-ctx.Done():
		}
	}
}

func (a *app) execCommand() *cobra.Command {
	var x container.ExecFlags
	var name string
	cmd := session.OwnStatus(&cobra.Command{
		Use: "exec [flags] POD COMMAND [ARG...]", Short: "Run a command in a container of a pod", Args: session.MinArgs(2),
		ValidArgsFunction: session.CompleteFirst(a.completePods), Example: "  berth pod exec web ls\n  berth pod exec -it web -c sidecar -- sh",
	})
	cmd.RunE = a.connected(func(ctx context.Context, c *client.Client, args []string) error {
		// kubectl's habit: flags may stand behind the pod, up to "--" or the command.
		if err := cmd.Flags().Parse(args[1:]); err != nil {
			return err
		}
		command := cmd.Flags().Args()
		if len(command) == 0 {
			return errors.New("say which command to run in the pod")
		}
		p, err := findPod(ctx, c, args[0])
		if err != nil {
			return err
		}
		k, err := a.pick(ctx, c, p, name, true)
		if err != nil {
			return err
		}
		// The containers of a pod are containers of the daemon, too.
		r, err := c.Containers().Get(ctx, &containersapi.GetContainerRequest{ID: k.GetId()})
		if err != nil {
			return err
		}
		return container.Exec(ctx, a.App, c, r.GetContainer(), x, command)
	})
	x.Add(cmd)
	cmd.Flags().StringVarP(&name, "container", "c", "", "`name` of the container (default: the first that runs)")
	return cmd
}

// eachPod does something to each pod.
func (a *app) eachPod(fn func(context.Context, *client.Client, *cri.PodSandbox) error) session.Run {
	return a.connected(func(ctx context.Context, c *client.Client, args []string) error {
		return a.ForEach(args, func(ref string) error {
			p, err := findPod(ctx, c, ref)
			if err != nil {
				return err
			}
			return fn(ctx, c, p)
		})
	})
}

func (a *app) stopCommand() *cobra.Command {
	var seconds int64
	cmd := &cobra.Command{
		Use: "stop POD...", Short: "End pods, gently at first, and give back their addresses", Args: session.MinArgs(1), ValidArgsFunction: a.completePods, Example: "  berth pod stop web",
		RunE: a.eachPod(func(ctx context.Context, c *client.Client, p *cri.PodSandbox) error {
			return stopPod(ctx, c, p, seconds)
		}),
	}
	cmd.Flags().Int64VarP(&seconds, "time", "t", 10, "`seconds` that containers get before they are killed")
	return cmd
}

func stopPod(ctx context.Context, c *client.Client, p *cri.PodSandbox, seconds int64) error {
	all, err := containersOf(ctx, c, p.GetId())
	if err != nil {
		return err
	}
	for i := len(all) - 1; i >= 0; i-- {
		if all[i].GetState() != cri.ContainerState_CONTAINER_RUNNING {
			continue
		}
		if _, err := c.Pods().StopContainer(ctx, &cri.StopContainerRequest{ContainerId: all[i].GetId(), Timeout: seconds}); err != nil {
			return err
		}
	}
	_, err = c.Pods().StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.GetId()})
	return err
}

func (a *app) rmCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "rm POD...", Short: "Remove pods with their containers", Args: session.MinArgs(1), Aliases: []string{"remove"}, ValidArgsFunction: a.completePods,
		Example: "  berth pod rm web\n  berth pod rm -f $(berth pods -q)",
		RunE: a.eachPod(func(ctx context.Context, c *client.Client, p *cri.PodSandbox) error {
			if p.GetState() == cri.PodSandboxState_SANDBOX_READY && !force {
				return errs.New(errs.FailedPrecondition, "pod %s runs: stop it with `berth pod stop %s`, or use -f", p.GetMetadata().GetName(), p.GetMetadata().GetName())
			}
			if _, err := c.Pods().RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.GetId()}); err != nil {
				return err
			}
			return removeFiles(ctx, c, p)
		}),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also those that run")
	return cmd
}

// podStat is what one pod uses.
type podStat struct{ ID, Name, Namespace, CPU, Memory, NetIO, Processes string }

func (a *app) statsCommand() *cobra.Command {
	var l session.Listing
	cmd := l.Add(&cobra.Command{Use: "stats [POD]", Short: "Show what pods use", Args: session.RangeArgs(0, 1), ValidArgsFunction: a.completePods, Example: "  berth pod stats"}, false)
	cmd.RunE = a.connected(func(ctx context.Context, c *client.Client, args []string) error {
		filter := &cri.PodSandboxStatsFilter{}
		if len(args) == 1 {
			p, err := findPod(ctx, c, args[0])
			if err != nil {
				return err
			}
			filter.Id = p.GetId()
		}
		old, err := c.Pods().ListPodSandboxStats(ctx, &cri.ListPodSandboxStatsRequest{Filter: filter})
		if err != nil {
			return err
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		now, err := c.Pods().ListPodSandboxStats(ctx, &cri.ListPodSandboxStatsRequest{Filter: filter})
		if err != nil {
			return err
		}
		before := map[string]*cri.PodSandboxStats{}
		for _, s := range old.GetStats() {
			before[s.GetAttributes().GetId()] = s
		}
		var rows []podStat
		for _, s := range now.GetStats() {
			rows = append(rows, describeStats(before[s.GetAttributes().GetId()], s))
		}
		return session.Print(a.App, l, rows, func(r podStat) string { return r.ID }, "POD ID=ID", "NAMESPACE", "NAME", "CPU %=CPU", "MEMORY", "NET I/O=NetIO", "PROCESSES")
	})
	return cmd
}

func describeStats(old, s *cri.PodSandboxStats) podStat {
	m, l := s.GetAttributes().GetMetadata(), s.GetLinux()
	r := podStat{
		ID: client.ShortID(s.GetAttributes().GetId()), Name: m.GetName(), Namespace: m.GetNamespace(), CPU: "--", NetIO: "--",
		Memory: table.BinarySize(int64(l.GetMemory().GetWorkingSetBytes().GetValue())), Processes: fmt.Sprint(l.GetProcess().GetProcessCount().GetValue()),
	}
	a, b := old.GetLinux().GetCpu(), l.GetCpu()
	if d := b.GetTimestamp() - a.GetTimestamp(); old != nil && d > 0 && b.GetUsageCoreNanoSeconds().GetValue() >= a.GetUsageCoreNanoSeconds().GetValue() {
		r.CPU = fmt.Sprintf("%.2f%%", float64(b.GetUsageCoreNanoSeconds().GetValue()-a.GetUsageCoreNanoSeconds().GetValue())/float64(d)*100)
	}
	if n := b.GetUsageNanoCores(); r.CPU == "--" && n != nil {
		r.CPU = fmt.Sprintf("%.2f%%", float64(n.GetValue())/1e7)
	}
	if n := l.GetNetwork().GetDefaultInterface(); n != nil {
		r.NetIO = table.Size(int64(n.GetRxBytes().GetValue())) + " / " + table.Size(int64(n.GetTxBytes().GetValue()))
	}
	return r
}
