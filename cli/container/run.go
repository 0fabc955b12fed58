package container

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	"github.com/spf13/cobra"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/cli/client"
	"github.com/berthd/berth/cli/image"
	"github.com/berthd/berth/cli/session"
	"github.com/berthd/berth/cli/term"
)

// app is one call of the program.
type app struct{ *session.App }

// Commands are the verbs of containers.
func Commands(s *session.App) []*cobra.Command {
	a := &app{s}
	return []*cobra.Command{
		a.runCommand(), a.createCommand(), a.startCommand(), a.stopCommand(), a.restartCommand(), a.killCommand(), a.pauseCommand(),
		a.unpauseCommand(), a.waitCommand(), a.rmCommand(), a.renameCommand(), a.psCommand(), a.logsCommand(), a.execCommand(),
		a.attachCommand(), a.inspectCommand(), a.topCommand(), a.statsCommand(), a.cpCommand(), a.diffCommand(), a.updateCommand(),
		a.commitCommand(), a.exportCommand(), a.portCommand(), a.volumeCommand(),
	}
}

// pathOfAddress is the path of a log:// address.
func pathOfAddress(s string) string {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "log" {
		return ""
	}
	return u.Path
}

func (a *app) runCommand() *cobra.Command {
	var x createFlags
	var keys string
	var sigProxy bool
	cmd := session.OwnStatus(&cobra.Command{
		Use: "run [flags] IMAGE [COMMAND] [ARG...]", Short: "Make a container and run it",
		Long: `Make a container of an image, getting the image if it is not here, and run it. Without -d, its output
is shown and berth ends as it ends; with -d, its id is printed and it goes on.

Exit status: the command's own; 125 berth could not do it; 126 the command cannot be executed;
127 it is not there; 128+N it was ended by signal N.

From a terminal given with -it, ctrl-p ctrl-q leaves the container running; "berth attach" comes back.`,
		Example: `  berth run --rm busybox echo hello
  berth run -it --rm debian bash
  berth run -d --name web -v $PWD/site:/usr/share/nginx/html:ro nginx
  berth run --rm -m 64m --cpus 0.5 --read-only --tmpfs /tmp app`,
		Args: session.MinArgs(1), ValidArgsFunction: session.CompleteFirst(image.Complete(a.App)),
	})
	cmd.RunE = a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		x.EntrypointSet = cmd.Flags().Changed("entrypoint")
		if x.Terminal && x.interactive && !x.detached && !term.Is(a.In) {
			return errors.New("-it needs a terminal, and stdin is none: leave out -t")
		}
		k, err := a.create(ctx, c, &x, args[0], args[1:])
		if err != nil {
			return err
		}
		if x.detached {
			return a.runDetached(ctx, c, k, x.remove)
		}
		status, err := a.runForeground(ctx, c, k, x.interactive, keys, sigProxy, x.remove)
		if err != nil {
			return err
		}
		return exitStatus(status)
	})
	x.add(cmd)
	f := cmd.Flags()
	f.BoolVarP(&x.detached, "detach", "d", false, "run in the background and print the id")
	f.StringVar(&keys, "detach-keys", term.DefaultKeys, "`keys` that leave the container running")
	f.BoolVar(&sigProxy, "sig-proxy", true, "pass signals on to the container")
	return cmd
}

// exitStatus ends the program as the container has ended.
func exitStatus(status uint32) error {
	if status == 0 {
		return nil
	}
	return session.ExitCode{Code: int(status & 0xff)}
}

func (a *app) runDetached(ctx context.Context, c *client.Client, k *containersapi.Container, remove bool) error {
	err := makeTask(ctx, c, k)
	if err == nil {
		err = startTask(ctx, c, k.GetID())
	}
	if err == nil {
		err = setRestart(ctx, c, k, true)
	}
	if err != nil {
		return a.cleanAfter(ctx, c, k, remove, err)
	}
	fmt.Fprintln(a.Out, k.GetID())
	return nil
}

// runForeground runs a container that was made, with the user at it.
func (a *app) runForeground(ctx context.Context, c *client.Client, k *containersapi.Container, stdin bool, keys string, sigProxy, remove bool) (uint32, error) {
	if err := makeTask(ctx, c, k); err != nil {
		return 0, a.cleanAfter(ctx, c, k, remove, err)
	}
	f, err := a.dial(ctx, c, k, stdin, keys)
	if err != nil {
		return 0, a.cleanAfter(ctx, c, k, remove, err)
	}
	f.fresh, f.remove, f.sigProxy = true, remove, sigProxy && !f.s.Terminal()
	// From here on the user's interrupts are the container's, not ours.
	ctx = context.WithoutCancel(ctx)
	status, detached, err := f.run(ctx, func() error {
		if err := startTask(ctx, c, k.GetID()); err != nil {
			return err
		}
		return setRestart(ctx, c, k, true)
	})
	if detached {
		fmt.Fprintf(a.Err, "\r\nContainer %s goes on; come back with `berth attach %s`.\r\n", client.DisplayName(k), client.DisplayName(k))
		if remove {
			return 0, Relabel(ctx, c, k, map[string]string{client.LabelAutoRemove: "true"})
		}
		return 0, nil
	}
	if err != nil {
		return 0, a.cleanAfter(ctx, c, k, remove, err)
	}
	if remove {
		err = a.removePatiently(ctx, c, k)
	}
	return status, err
}

// patience is how long a daemon may be away when a container is to be removed: it
// may just be started again.
const patience = 15 * time.Second

func (a *app) removePatiently(ctx context.Context, c *client.Client, k *containersapi.Container) error {
	for end := time.Now().Add(patience); ; time.Sleep(patience / 60) {
		err := a.removeContainer(ctx, c, k, true)
		if err == nil || !errs.Is(err, errs.Unavailable) || time.Now().After(end) {
			return errs.Ignore(err, errs.NotFound)
		}
	}
}

// cleanAfter removes a container that could not be started, if it was to be
// removed; else only its task goes.
func (a *app) cleanAfter(ctx context.Context, c *client.Client, k *containersapi.Container, remove bool, err error) error {
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTime)
	defer cancel()
	var cerr error
	if remove {
		cerr = a.removeContainer(clean, c, k, true)
	} else if p, terr := TaskOf(clean, c, k.GetID()); terr == nil && p != nil && !IsUp(p) {
		_ = kill(clean, c, k.GetID(), 9, true) // a created one is ended before it is deleted
		cerr = deleteTask(clean, c, k.GetID())
	}
	var code session.ExitCode
	if errors.As(err, &code) {
		return session.ExitCode{Code: code.Code, Err: errors.Join(code.Err, cerr)}
	}
	return errors.Join(err, cerr)
}

func (a *app) createCommand() *cobra.Command {
	var x createFlags
	cmd := session.OwnStatus(&cobra.Command{
		Use: "create [flags] IMAGE [COMMAND] [ARG...]", Short: "Make a container without running it",
		Long:    `Make a container and print its id. "berth start" runs it.`,
		Example: "  id=$(berth create --name job busybox sleep 60)\n  berth start job",
		Args:    session.MinArgs(1), ValidArgsFunction: session.CompleteFirst(image.Complete(a.App)),
	})
	cmd.RunE = a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		x.EntrypointSet, x.detached = cmd.Flags().Changed("entrypoint"), true
		k, err := a.create(ctx, c, &x, args[0], args[1:])
		if err != nil {
			return err
		}
		fmt.Fprintln(a.Out, k.GetID())
		return nil
	})
	x.add(cmd)
	return cmd
}

func (a *app) startCommand() *cobra.Command {
	var attachTo, interactive bool
	var keys string
	cmd := &cobra.Command{
		Use: "start [flags] CONTAINER...", Short: "Run containers that have ended or were only made",
		Example: "  berth start web\n  berth start -ai shell",
		Args:    session.MinArgs(1), ValidArgsFunction: a.completeContainers(false),
	}
	cmd.RunE = a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		if !attachTo && !interactive {
			return a.ForEach(args, func(ref string) error {
				k, err := Find(ctx, c, ref)
				if err != nil {
					return err
				}
				return a.start(ctx, c, k)
			})
		}
		if len(args) != 1 {
			return errors.New("-a and -i take one container")
		}
		k, err := Find(ctx, c, args[0])
		if err != nil {
			return err
		}
		if err := a.reconnect(ctx, c, k); err != nil {
			return err
		}
		status, err := a.runForeground(ctx, c, k, interactive, keys, true, false)
		if err != nil {
			return err
		}
		return exitStatus(status)
	})
	f := cmd.Flags()
	f.BoolVarP(&attachTo, "attach", "a", false, "show its output, pass signals on, and end as it ends")
	f.BoolVarP(&interactive, "interactive", "i", false, "also give it stdin, if it was made with -i")
	f.StringVar(&keys, "detach-keys", term.DefaultKeys, "`keys` that leave the container running")
	return cmd
}

// start runs a container; one that runs already is left alone.
func (a *app) start(ctx context.Context, c *client.Client, k *containersapi.Container) error {
	p, err := TaskOf(ctx, c, k.GetID())
	if err != nil || IsUp(p) {
		return err
	}
	if err := a.reconnect(ctx, c, k); err != nil {
		return err
	}
	if err := makeTask(ctx, c, k); err != nil {
		return err
	}
	if err := startTask(ctx, c, k.GetID()); err != nil {
		return a.cleanAfter(ctx, c, k, false, err)
	}
	return setRestart(ctx, c, k, true)
}

func (a *app) attachCommand() *cobra.Command {
	var keys string
	var noStdin, sigProxy bool
	cmd := session.OwnStatus(&cobra.Command{
		Use: "attach [flags] CONTAINER", Short: "Connect to a running container's terminal or output",
		Long: `Connect to the first process of a container: see its output from now on, and give it input if it was
made with -i. Several may be attached at once. The detach keys leave it running.`,
		Example: "  berth attach web\n  berth attach --no-stdin web",
		Args:    session.ExactArgs(1), ValidArgsFunction: a.completeContainers(true),
	})
	cmd.RunE = a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		k, err := Find(ctx, c, args[0])
		if err != nil {
			return err
		}
		if _, err := running(ctx, c, k); err != nil {
			return err
		}
		f, err := a.dial(ctx, c, k, !noStdin, keys)
		if err != nil {
			return err
		}
		f.sigProxy = sigProxy && !f.s.Terminal()
		status, detached, err := f.run(context.WithoutCancel(ctx), nil)
		if err != nil {
			return err
		}
		if detached {
			fmt.Fprintf(a.Err, "\r\nContainer %s goes on.\r\n", client.DisplayName(k))
			return nil
		}
		return exitStatus(status)
	})
	f := cmd.Flags()
	f.StringVar(&keys, "detach-keys", term.DefaultKeys, "`keys` that leave the container running")
	f.BoolVar(&noStdin, "no-stdin", false, "only look")
	f.BoolVar(&sigProxy, "sig-proxy", true, "pass signals on to the container")
	return cmd
}
