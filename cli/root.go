// Package cli is berth's command line. It speaks the daemon's public gRPC APIs
// and nothing else; one file holds one verb.
package cli

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

// exitCode carries the status with which the program shall end, as that of the
// container that it ran.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// Main runs the command line and returns the exit status. extra are the commands
// of other packages, as the daemon's.
func Main(args []string, extra ...*cobra.Command) int {
	root := &cobra.Command{
		Use:           "berth",
		Short:         "Run containers",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(extra...)
	root.SetArgs(args)
	err := root.ExecuteContext(context.Background())
	var code exitCode
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	}
	fmt.Fprintln(os.Stderr, "berth:", err)
	return 1
}
