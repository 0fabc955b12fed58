// Package cli is berth's command line: it puts the verbs of its nested packages
// together. They speak the daemon's public gRPC APIs and nothing else.
package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/cli/container"
	"github.com/berthd/berth/cli/image"
	"github.com/berthd/berth/cli/plumb"
	"github.com/berthd/berth/cli/pod"
	"github.com/berthd/berth/cli/session"
	"github.com/berthd/berth/cli/system"
)

// Build says which program this is.
type Build = session.Build

// Main runs the command line and returns the exit status. extra are the commands
// of other packages, as the daemon's.
func Main(args []string, build Build, extra ...*cobra.Command) int {
	// The first interrupt ends what a command waits for, the second one the program,
	// unless the command has given its signals to a container.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	got := make(chan os.Signal, 1)
	signal.Notify(got, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	stop := func() { signal.Stop(got) }
	// owner: it ends with the first signal, or with the program.
	go func() {
		<-got
		stop()
		cancel()
	}()
	a := &session.App{Build: build, In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Release: stop}
	defer a.Close()
	return run(ctx, a, args, extra...)
}

// The statuses of programs that SIGINT and SIGPIPE have ended (128 and the signal).
const (
	interrupted = 130
	unread      = 141
)

func run(ctx context.Context, a *session.App, args []string, extra ...*cobra.Command) int {
	root := tree(a, extra...)
	root.SetArgs(args)
	root.SetIn(a.In)
	root.SetOut(a.Out)
	root.SetErr(a.Err)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	var code session.ExitCode
	switch {
	case ctx.Err() != nil && errs.Is(err, context.Canceled):
		return interrupted
	case errors.Is(err, syscall.EPIPE):
		return unread
	case errors.As(err, &code):
		if code.Err != nil {
			fmt.Fprintln(a.Err, "berth:", code.Err)
		}
		return code.Code
	}
	fmt.Fprintln(a.Err, "berth:", err)
	return session.Failure(cmd)
}

// tree is every command.
func tree(a *session.App, extra ...*cobra.Command) *cobra.Command {
	root := &cobra.Command{
		Use:   "berth",
		Short: "Run containers and pods",
		Long: `berth runs containers and pods. Every command but "daemon" and "demo" talks to a daemon
through its socket.

  BERTH_ADDRESS, CONTAINERD_ADDRESS       the daemon's socket, where --address is not given
  BERTH_NAMESPACE, CONTAINERD_NAMESPACE   the namespace, where --namespace is not given

Containers, images and snapshots live in namespaces; pods and what a kubelet makes are in "k8s.io".`,
		Example: `  berth run --rm -it busybox sh
  berth run -d --name web -p 8080:80 nginx
  berth ps
  berth logs -f web
  berth exec -it web sh
  berth -n k8s.io images`,
		SilenceUsage:      true,
		SilenceErrors:     true,
		PersistentPreRunE: a.Before,
	}
	root.AddGroup(&cobra.Group{ID: "container", Title: "Containers:"}, &cobra.Group{ID: "image", Title: "Images:"},
		&cobra.Group{ID: "pod", Title: "Pods and networks:"}, &cobra.Group{ID: "system", Title: "System:"}, &cobra.Group{ID: "plumbing", Title: "Plumbing, for those who know ctr:"})
	root.SetHelpCommandGroupID("system")
	root.SetCompletionCommandGroupID("system")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w; see `%s --help`", err, cmd.CommandPath())
	})
	f := root.PersistentFlags()
	f.StringVar(&a.Address, "address", "", "`path` of the daemon's socket (default $BERTH_ADDRESS, $CONTAINERD_ADDRESS or "+session.DefaultAddress+")")
	f.StringVarP(&a.Namespace, "namespace", "n", "", "`namespace` to work in (default $BERTH_NAMESPACE, $CONTAINERD_NAMESPACE or default)")
	f.BoolVar(&a.Debug, "debug", false, "say more about what goes on")
	f.DurationVar(&a.Timeout, "timeout", 0, "give up after this `time`, as 30s (default: never)")
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
		}
		root.AddCommand(cmds...)
	}
	add("container", container.Commands(a)...)
	add("image", image.Commands(a)...)
	add("pod", pod.Commands(a)...)
	add("system", system.Commands(a)...)
	add("plumbing", plumb.Commands(a)...)
	add("system", extra...)
	if err := root.RegisterFlagCompletionFunc("namespace", container.CompleteNamespaces(a)); err != nil {
		a.Debugf("%v", err) // completion is worth no failure
	}
	return root
}
