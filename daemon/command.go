package daemon

import (
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/daemon/config"
)

// Version and Revision are set by the linker (Makefile).
var (
	Version  = "0.0.0-dev"
	Revision = ""
)

// Command is `berth daemon`.
func Command() *cobra.Command {
	var file, root, state, address, level string
	cmd := &cobra.Command{
		Use:   "daemon",
		Short: "Run the daemon in the foreground",
		Long: `Run the daemon in the foreground. It serves containerd's gRPC API on one socket.

Several daemons can run side by side: give each its own --root, --state and --address.
Containers go on when the daemon stops, and are found again when it starts.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(file)
			if err != nil {
				return err
			}
			for _, o := range []struct{ flag, to *string }{{&root, &cfg.Root}, {&state, &cfg.State}, {&address, &cfg.GRPC.Address}, {&level, &cfg.Debug.Level}} {
				if *o.flag != "" {
					*o.to = *o.flag
				}
			}
			log, err := logger(cfg.Debug.Level)
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			return Run(ctx, cfg, log)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&file, "config", "c", "", "configuration `file` (default "+config.DefaultFile+", if it is there)")
	f.StringVar(&root, "root", "", "`directory` of what lasts (default "+config.DefaultRoot+")")
	f.StringVar(&state, "state", "", "`directory` of what a reboot may clear (default "+config.DefaultState+")")
	f.StringVarP(&address, "address", "a", "", "`path` of the socket (default "+config.DefaultAddress+")")
	f.StringVarP(&level, "log-level", "l", "", "debug, info, warn or error (default info)")
	return cmd
}

func logger(level string) (*slog.Logger, error) {
	var l slog.Level
	switch strings.ToLower(level) {
	case "":
	case "trace":
		l = slog.LevelDebug
	case "fatal", "panic":
		l = slog.LevelError
	default:
		if err := l.UnmarshalText([]byte(level)); err != nil {
			return nil, fmt.Errorf("log level %q: use debug, info, warn or error", level)
		}
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: l})), nil
}
