// Package cli is berth's command line. It speaks the daemon's public gRPC APIs
// and nothing else; one file holds one verb or a few near ones.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/id"
	"github.com/berthd/berth/cli/client"
)

// Exit statuses that are not a container's own, as Docker has them.
const (
	exitFailed   = 1
	exitBerth    = 125 // berth itself could not do it
	exitNoRun    = 126 // the command cannot be executed
	exitNotFound = 127 // the command is not there
)

// exitCode carries the status with which the program shall end, as that of the
// container that it ran. With an error it is printed before.
type exitCode struct {
	code int
	err  error
}

func (e exitCode) Error() string {
	if e.err != nil {
		return e.err.Error()
	}
	return fmt.Sprintf("exit status %d", e.code)
}

func (e exitCode) Unwrap() error { return e.err }

// Build says which program this is.
type Build struct{ Version, Revision string }

// app is what all commands share.
type app struct {
	build     Build
	address   string
	namespace string
	debug     bool
	timeout   time.Duration
	in        *os.File
	out       io.Writer
	err       io.Writer
	conn      *client.Client
	release   func() // lets signals end the program again
}

// defaultAddress is where a daemon listens that was told nothing else.
const defaultAddress = "/run/berth/berth.sock"

func env(keys ...string) string {
	for _, k := range keys {
		if v := os.Getenv(k); v != "" {
			return v
		}
	}
	return ""
}

// Main runs the command line and returns the exit status. extra are the commands
// of other packages, as the daemon's.
func Main(args []string, build Build, extra ...*cobra.Command) int {
	// Interrupts end what a command waits for; the second one ends the program.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	context.AfterFunc(ctx, stop)
	a := &app{build: build, in: os.Stdin, out: os.Stdout, err: os.Stderr, release: stop}
	defer a.close()
	return a.main(ctx, args, extra...)
}

func (a *app) main(ctx context.Context, args []string, extra ...*cobra.Command) int {
	root := a.root()
	for _, c := range extra {
		c.GroupID = "system"
	}
	root.AddCommand(extra...)
	root.SetArgs(args)
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	var code exitCode
	if errors.As(err, &code) {
		if code.err != nil {
			fmt.Fprintln(a.err, "berth:", code.err)
		}
		return code.code
	}
	if ctx.Err() != nil && errs.Is(err, context.Canceled) {
		return 130
	}
	fmt.Fprintln(a.err, "berth:", err)
	if cmd.Annotations[statusKey] != "" {
		return exitBerth
	}
	return exitFailed
}

// statusKey marks commands whose failures must not look like a container's status.
const statusKey = "berth.dev/own-status"

func (a *app) root() *cobra.Command {
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
		PersistentPreRunE: a.before,
	}
	root.AddGroup(&cobra.Group{ID: "container", Title: "Containers:"}, &cobra.Group{ID: "image", Title: "Images:"},
		&cobra.Group{ID: "pod", Title: "Pods and networks:"}, &cobra.Group{ID: "system", Title: "System:"}, &cobra.Group{ID: "plumbing", Title: "Plumbing, for those who know ctr:"})
	root.SetHelpCommandGroupID("system")
	root.SetCompletionCommandGroupID("system")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w; see `%s --help`", err, cmd.CommandPath())
	})
	f := root.PersistentFlags()
	f.StringVar(&a.address, "address", "", "`path` of the daemon's socket (default $BERTH_ADDRESS, $CONTAINERD_ADDRESS or "+defaultAddress+")")
	f.StringVarP(&a.namespace, "namespace", "n", "", "`namespace` to work in (default $BERTH_NAMESPACE, $CONTAINERD_NAMESPACE or default)")
	f.BoolVar(&a.debug, "debug", false, "say more about what goes on")
	f.DurationVar(&a.timeout, "timeout", 0, "give up after this `time`, as 30s (default: never)")
	_ = root.RegisterFlagCompletionFunc("namespace", a.completeNamespaces)
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
		}
		root.AddCommand(cmds...)
	}
	add("container", a.containerCommands()...)
	add("image", a.imageCommands()...)
	add("system", a.systemCommands()...)
	add("plumbing", a.plumbingCommands()...)
	return root
}

// before completes the global flags.
func (a *app) before(cmd *cobra.Command, _ []string) error {
	if a.address == "" {
		if a.address = env("BERTH_ADDRESS", "CONTAINERD_ADDRESS"); a.address == "" {
			a.address = defaultAddress
		}
	}
	if a.namespace == "" {
		if a.namespace = env("BERTH_NAMESPACE", "CONTAINERD_NAMESPACE"); a.namespace == "" {
			a.namespace = "default"
		}
	}
	if err := id.Check("namespace", a.namespace); err != nil {
		return err
	}
	if a.timeout > 0 {
		ctx, cancel := context.WithTimeout(cmd.Context(), a.timeout)
		context.AfterFunc(ctx, cancel)
		cmd.SetContext(ctx)
	}
	return nil
}

// daemon is the connection, made when it is first needed.
func (a *app) daemon(ctx context.Context) (*client.Client, error) {
	if a.conn != nil {
		return a.conn, nil
	}
	c, err := client.Dial(ctx, a.address, a.namespace)
	if err != nil {
		return nil, err
	}
	a.conn = c
	return c, nil
}

func (a *app) close() {
	if a.conn != nil {
		_ = a.conn.Close() // nothing waits for it any more
	}
}

// debugf prints what only --debug shows.
func (a *app) debugf(format string, args ...any) {
	if a.debug {
		fmt.Fprintf(a.err, "berth: "+format+"\n", args...)
	}
}

// connected makes a command's function of one that needs the daemon.
func (a *app) connected(fn func(ctx context.Context, c *client.Client, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := a.daemon(cmd.Context())
		if err != nil {
			return err
		}
		return fn(cmd.Context(), c, args)
	}
}

// forEach does the same to each of several things: all are tried, what worked is
// printed, the errors are joined.
func (a *app) forEach(refs []string, fn func(ref string) error) error {
	var all []error
	for _, r := range refs {
		if err := fn(r); err != nil {
			all = append(all, err)
			continue
		}
		fmt.Fprintln(a.out, r)
	}
	return errors.Join(all...)
}
