// Package session is what all commands of one call share: the global flags, the
// connection, the streams, and how failures end the program. It knows no verb.
package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/base/id"
	"github.com/berthd/berth/cli/client"
	"github.com/berthd/berth/cli/term"
)

// Exit statuses that are not a container's own, as Docker has them.
const (
	ExitFailed   = 1
	ExitBerth    = 125 // berth itself could not do it
	ExitNoRun    = 126 // the command cannot be executed
	ExitNotFound = 127 // the command is not there
)

// ExitCode carries the status with which the program shall end, as that of the
// container that it ran. With an error it is printed before.
type ExitCode struct {
	Code int
	Err  error
}

func (e ExitCode) Error() string {
	if e.Err != nil {
		return e.Err.Error()
	}
	return fmt.Sprintf("exit status %d", e.Code)
}

// Unwrap gives the error that is printed.
func (e ExitCode) Unwrap() error { return e.Err }

// Build says which program this is.
type Build struct{ Version, Revision string }

// App is one call of the program.
type App struct {
	Build     Build
	Address   string
	Namespace string
	Given     bool // the user has said a namespace
	Debug     bool
	Timeout   time.Duration
	In        *os.File
	Out       io.Writer
	Err       io.Writer
	Conn      *client.Client // nil until it is needed
	Release   func()         // leaves signals to whoever asks for them from now on
}

// DefaultAddress is where a daemon listens that was told nothing else.
const DefaultAddress = "/run/berth/berth.sock"

func env(keys ...string) string {
	for _, k := range keys {
		if v := os.Getenv(k); v != "" {
			return v
		}
	}
	return ""
}

// Before completes the global flags.
func (a *App) Before(cmd *cobra.Command, _ []string) error {
	if a.Address == "" {
		if a.Address = env("BERTH_ADDRESS", "CONTAINERD_ADDRESS"); a.Address == "" {
			a.Address = DefaultAddress
		}
	}
	if a.Namespace == "" {
		a.Namespace = env("BERTH_NAMESPACE", "CONTAINERD_NAMESPACE")
	}
	if a.Given = a.Namespace != ""; !a.Given {
		a.Namespace = "default"
	}
	if err := id.Check("namespace", a.Namespace); err != nil {
		return err
	}
	if a.Timeout > 0 {
		ctx, cancel := context.WithTimeout(cmd.Context(), a.Timeout)
		context.AfterFunc(ctx, cancel)
		cmd.SetContext(ctx)
	}
	return nil
}

// Daemon is the connection, made when it is first needed.
func (a *App) Daemon(ctx context.Context) (*client.Client, error) {
	if a.Conn != nil {
		return a.Conn, nil
	}
	c, err := client.Dial(ctx, a.Address, a.Namespace)
	if err != nil {
		return nil, err
	}
	if a.Debug {
		c.Trace = func(method string, took time.Duration) { a.Debugf("%8s %s", took.Round(10*time.Microsecond), method) }
	}
	a.Conn = c
	return c, nil
}

// Close ends the connection.
func (a *App) Close() {
	if a.Conn != nil {
		_ = a.Conn.Close() // nothing waits for it any more
	}
}

// Debugf prints what only --debug shows.
func (a *App) Debugf(format string, args ...any) {
	if a.Debug {
		fmt.Fprintf(a.Err, "berth: "+format+"\n", args...)
	}
}

// OnTerminal reports whether stdout is a terminal.
func (a *App) OnTerminal() bool {
	f, ok := a.Out.(*os.File)
	return ok && term.Is(f)
}

// Run is a command's function; Verb is one that needs the daemon.
type (
	Run  = func(*cobra.Command, []string) error
	Verb = func(ctx context.Context, c *client.Client, args []string) error
)

// Connected makes a command's function of one that needs the daemon.
func (a *App) Connected(fn Verb) Run {
	return func(cmd *cobra.Command, args []string) error {
		c, err := a.Daemon(cmd.Context())
		if err != nil {
			return err
		}
		return fn(cmd.Context(), c, args)
	}
}

// ForEach does the same to each of several things: all are tried, what worked is
// printed, the errors are joined.
func (a *App) ForEach(refs []string, fn func(ref string) error) error {
	var all []error
	for _, r := range refs {
		if err := fn(r); err != nil {
			all = append(all, err)
			continue
		}
		fmt.Fprintln(a.Out, r)
	}
	return errors.Join(all...)
}

// Complete lists words that begin as the user's, for a shell.
func (a *App) Complete(cmd *cobra.Command, word string, list func(context.Context, *client.Client) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	if err := a.Before(cmd, nil); err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	c, err := a.Daemon(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	all, err := list(cmd.Context(), c)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var out []string
	for _, s := range all {
		if strings.HasPrefix(s, word) {
			out = append(out, s)
		}
	}
	sort.Strings(out)
	return out, cobra.ShellCompDirectiveNoFileComp
}

// Completion completes arguments.
type Completion = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// CompleteFirst completes the first argument only; the others are the container's.
func CompleteFirst(fn Completion) Completion {
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return fn(cmd, args, word)
	}
}

// ownStatus marks commands whose failures must not look like a container's status.
const ownStatus = "berth.dev/own-status"

// OwnStatus says that failures of a command end with 125.
func OwnStatus(cmd *cobra.Command) *cobra.Command {
	cmd.Annotations = map[string]string{ownStatus: "125"}
	return cmd
}

// Failure is the status of a command that could not do its work.
func Failure(cmd *cobra.Command) int {
	if cmd.Annotations[ownStatus] != "" {
		return ExitBerth
	}
	return ExitFailed
}
