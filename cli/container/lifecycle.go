package container

import (
	"context"
	"errors"
	"fmt"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/spf13/cobra"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/id"
	"github.com/berthd/berth/cli/client"
	"github.com/berthd/berth/cli/session"
)

// Each makes a command's function that does something to each container.
func Each(s *session.App, fn func(context.Context, *client.Client, *containersapi.Container) error) session.Run {
	return (&app{s}).eachContainer(fn)
}

// eachContainer makes a command's function that does something to each container.
func (a *app) eachContainer(fn func(context.Context, *client.Client, *containersapi.Container) error) func(*cobra.Command, []string) error {
	return a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		return a.ForEach(args, func(ref string) error {
			k, err := Find(ctx, c, ref)
			if err != nil {
				return err
			}
			return fn(ctx, c, k)
		})
	})
}

func (a *app) stopCommand() *cobra.Command {
	var seconds int
	var signal string
	cmd := &cobra.Command{
		Use: "stop [flags] CONTAINER...", Short: "End containers, gently at first",
		Long:    `Send each container its stop signal (SIGTERM unless the image or --stop-signal says another), and SIGKILL if it has not ended in time.`,
		Example: "  berth stop web\n  berth stop -t 60 db",
		Args:    session.MinArgs(1), ValidArgsFunction: a.completeContainers(true),
		RunE: a.eachContainer(func(ctx context.Context, c *client.Client, k *containersapi.Container) error {
			return stop(ctx, c, k, seconds, signal)
		}),
	}
	cmd.Flags().IntVarP(&seconds, "time", "t", -1, "`seconds` to wait before SIGKILL (default: what --stop-timeout said, or 10)")
	cmd.Flags().StringVarP(&signal, "signal", "s", "", "`signal` to send")
	return cmd
}

func (a *app) restartCommand() *cobra.Command {
	var seconds int
	cmd := &cobra.Command{
		Use: "restart [flags] CONTAINER...", Short: "Stop containers and run them again",
		Example: "  berth restart web", Args: session.MinArgs(1), ValidArgsFunction: a.completeContainers(false),
		RunE: a.eachContainer(func(ctx context.Context, c *client.Client, k *containersapi.Container) error {
			if err := stop(ctx, c, k, seconds, ""); err != nil {
				return err
			}
			return a.start(ctx, c, k)
		}),
	}
	cmd.Flags().IntVarP(&seconds, "time", "t", -1, "`seconds` to wait before SIGKILL")
	return cmd
}

func (a *app) killCommand() *cobra.Command {
	var name string
	var all bool
	cmd := &cobra.Command{
		Use: "kill [flags] CONTAINER...", Short: "Send containers a signal",
		Example: "  berth kill web\n  berth kill -s HUP web",
		Args:    session.MinArgs(1), ValidArgsFunction: a.completeContainers(true),
		RunE: a.eachContainer(func(ctx context.Context, c *client.Client, k *containersapi.Container) error {
			sig, err := ParseSignal(name)
			if err != nil {
				return err
			}
			if _, err := running(ctx, c, k); err != nil {
				return err
			}
			if sig.String() == "killed" {
				if err := setRestart(ctx, c, k, false); err != nil {
					return err
				}
			}
			return kill(ctx, c, k.GetID(), sig, all)
		}),
	}
	cmd.Flags().StringVarP(&name, "signal", "s", "KILL", "`signal` by name or number")
	cmd.Flags().BoolVarP(&all, "all-processes", "a", false, "to every process, not the first only")
	return cmd
}

func (a *app) pauseCommand() *cobra.Command {
	return &cobra.Command{
		Use: "pause CONTAINER...", Short: "Freeze all processes of containers", Example: "  berth pause web",
		Args: session.MinArgs(1), ValidArgsFunction: a.completeContainers(true),
		RunE: a.eachContainer(func(ctx context.Context, c *client.Client, k *containersapi.Container) error {
			if _, err := running(ctx, c, k); err != nil {
				return err
			}
			_, err := c.Tasks().Pause(ctx, &tasksapi.PauseTaskRequest{ContainerID: k.GetID()})
			return err
		}),
	}
}

func (a *app) unpauseCommand() *cobra.Command {
	return &cobra.Command{
		Use: "unpause CONTAINER...", Short: "Let frozen containers go on", Example: "  berth unpause web", Aliases: []string{"resume"},
		Args: session.MinArgs(1), ValidArgsFunction: a.completeContainers(true),
		RunE: a.eachContainer(func(ctx context.Context, c *client.Client, k *containersapi.Container) error {
			_, err := c.Tasks().Resume(ctx, &tasksapi.ResumeTaskRequest{ContainerID: k.GetID()})
			return err
		}),
	}
}

func (a *app) waitCommand() *cobra.Command {
	return &cobra.Command{
		Use: "wait CONTAINER...", Short: "Wait until containers have ended and print how", Example: "  berth wait job",
		Args: session.MinArgs(1), ValidArgsFunction: a.completeContainers(false),
		RunE: a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
			var all []error
			for _, ref := range args {
				k, err := Find(ctx, c, ref)
				var status uint32
				if err == nil {
					status, err = waitExit(ctx, c, k.GetID())
				}
				if errs.Is(err, errs.NotFound) && k != nil {
					err = errs.New(errs.FailedPrecondition, "container %s has not been started", client.DisplayName(k))
				}
				if err != nil {
					all = append(all, err)
					continue
				}
				fmt.Fprintln(a.Out, status)
			}
			return errors.Join(all...)
		}),
	}
}

func (a *app) rmCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "rm [flags] CONTAINER...", Short: "Remove containers with their files and logs",
		Example: "  berth rm job\n  berth rm -f $(berth ps -aq)",
		Args:    session.MinArgs(1), ValidArgsFunction: a.completeContainers(false),
	}
	cmd.RunE = a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		return a.ForEach(args, func(ref string) error {
			k, err := Find(ctx, c, ref)
			if force && errs.Is(err, errs.NotFound) {
				return nil
			}
			if err != nil {
				return err
			}
			return a.removeContainer(ctx, c, k, force)
		})
	})
	cmd.Flags().BoolVarP(&force, "force", "f", false, "kill those that run")
	cmd.Flags().BoolP("volumes", "v", false, "for Docker's habit: volumes without names are part of the container anyway")
	return cmd
}

func (a *app) renameCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rename CONTAINER NAME", Short: "Call a container by another name", Example: "  berth rename brisk_sloop042 web",
		Args: session.ExactArgs(2), ValidArgsFunction: session.CompleteFirst(a.completeContainers(false)),
		RunE: a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
			k, err := Find(ctx, c, args[0])
			if err != nil {
				return err
			}
			if err := id.Check("container name", args[1]); err != nil {
				return err
			}
			taken, err := matchContainers(ctx, c, args[1])
			if err != nil {
				return err
			}
			for _, t := range taken {
				if client.DisplayName(t) == args[1] {
					return errs.New(errs.AlreadyExists, "the name %q is taken by container %s", args[1], client.ShortID(t.GetID()))
				}
			}
			return Relabel(ctx, c, k, map[string]string{client.LabelName: args[1]})
		}),
	}
}
