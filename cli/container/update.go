package container

import (
	"context"
	"encoding/json"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/cli/client"
	"github.com/berthd/berth/cli/session"
	"github.com/berthd/berth/cli/spec"
)

func (a *app) updateCommand() *cobra.Command {
	var x spec.Flags
	var restart string
	cmd := &cobra.Command{
		Use: "update [flags] CONTAINER...", Short: "Change limits and restart policy of containers",
		Example: "  berth update -m 256m --cpus 2 web\n  berth update --restart always web",
		Args:    session.MinArgs(1), ValidArgsFunction: a.completeContainers(false),
	}
	cmd.RunE = a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		r, err := x.Resources()
		if err != nil {
			return err
		}
		if _, _, err := restartRule(restart); err != nil {
			return err
		}
		return a.ForEach(args, func(ref string) error {
			k, err := Find(ctx, c, ref)
			if err != nil {
				return err
			}
			if err := updateLimits(ctx, c, k, r); err != nil {
				return err
			}
			return updateRestart(ctx, c, k, restart)
		})
	})
	x.AddResources(cmd.Flags())
	cmd.Flags().StringVar(&restart, "restart", "", "`policy`: no, always, unless-stopped or on-failure[:N]")
	return cmd
}

// updateLimits changes the running task first, then what the next start gets.
func updateLimits(ctx context.Context, c *client.Client, k *containersapi.Container, r *rspec.LinuxResources) error {
	if r.Memory == nil && r.CPU == nil && r.Pids == nil && r.BlockIO == nil {
		return nil
	}
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	p, err := TaskOf(ctx, c, k.GetID())
	if err != nil {
		return err
	}
	if IsUp(p) {
		_, err := c.Tasks().Update(ctx, &tasksapi.UpdateTaskRequest{
			ContainerID: k.GetID(), Resources: &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources", Value: data},
		})
		if err != nil {
			return err
		}
	}
	s := specOf(k)
	if s.Linux == nil {
		return errs.New(errs.FailedPrecondition, "container %s has no Linux configuration", client.DisplayName(k))
	}
	if s.Linux.Resources == nil {
		s.Linux.Resources = &rspec.LinuxResources{}
	}
	if err := json.Unmarshal(data, s.Linux.Resources); err != nil { // what was not asked for stays
		return err
	}
	return setSpec(ctx, c, k, s)
}

// setSpec changes what the next start of a container gets.
func setSpec(ctx context.Context, c *client.Client, k *containersapi.Container, s *rspec.Spec) error {
	whole, err := json.Marshal(s)
	if err != nil {
		return err
	}
	k.Spec.Value = whole
	_, err = c.Containers().Update(ctx, &containersapi.UpdateContainerRequest{
		Container: &containersapi.Container{ID: k.GetID(), Spec: k.GetSpec()}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"spec"}},
	})
	return err
}

func updateRestart(ctx context.Context, c *client.Client, k *containersapi.Container, policy string) error {
	if policy == "" {
		return nil
	}
	change := map[string]string{client.LabelRestartPolicy: policy, client.LabelRestartLog: k.GetLabels()[client.LabelLog]}
	if policy == "no" {
		return Relabel(ctx, c, k, map[string]string{client.LabelRestartPolicy: "", client.LabelRestartStatus: "", client.LabelRestartLog: "", client.LabelRestartStopped: "", client.LabelRestartCount: ""})
	}
	if p, err := TaskOf(ctx, c, k.GetID()); err != nil {
		return err
	} else if IsUp(p) {
		change[client.LabelRestartStatus] = "running"
	}
	return Relabel(ctx, c, k, change)
}
