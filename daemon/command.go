package daemon

import (
	"context"
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
	var file string
	var o config.Override
	cmd := &cobra.Command{
		Use:   "daemon",
		Short: "Run the daemon in the foreground",
		Long: `Run the daemon in the foreground. It serves containerd's gRPC API on one socket.

Several daemons can run side by side: give each its own --root, --state and --address.
Containers go on when the daemon stops, and are found again when it starts.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			load := func() (config.Config, error) { return config.Load(file, o) }
			cfg, err := load()
			if err != nil {
				return err
			}
			var level slog.LevelVar
			log, err := logger(cfg.Debug, &level)
			if err != nil {
				return err
			}
			for _, n := range cfg.Notes {
				log.Warn("configuration", "problem", n)
			}
			for _, d := range cfg.Deprecations {
				log.Warn("configuration", "deprecated", d.Message)
			}
			// The command line ends on SIGHUP; a daemon reads its configuration again.
			ctx, stop := signal.NotifyContext(context.WithoutCancel(cmd.Context()), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			return Run(ctx, Setup{Config: cfg, Load: load, Log: log, Level: &level})
		},
	}
	f := cmd.Flags()
	f.StringVarP(&file, "config", "c", "", "configuration `file` (default "+config.DefaultFile+", if it is there)")
	f.StringVar(&o.Root, "root", "", "`directory` of what lasts (default "+config.DefaultRoot+")")
	f.StringVar(&o.State, "state", "", "`directory` of what a reboot may clear (default "+config.DefaultState+")")
	f.StringVarP(&o.Address, "address", "a", "", "`path` of the socket (default "+config.DefaultAddress+")")
	f.StringVarP(&o.Level, "log-level", "l", "", "debug, info, warn or error (default info)")
	return cmd
}

// logger writes to stderr; its level can change later.
func logger(d config.Debug, level *slog.LevelVar) (*slog.Logger, error) {
	l, err := levelOf(d.Level)
	if err != nil {
		return nil, err
	}
	level.Set(l)
	opts := &slog.HandlerOptions{Level: level}
	if d.Format == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, opts)), nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, opts)), nil
}

func levelOf(name string) (l slog.Level, err error) {
	switch strings.ToLower(name) {
	case "":
	case "trace":
		l = slog.LevelDebug
	case "warning":
		l = slog.LevelWarn
	case "fatal", "panic":
		l = slog.LevelError
	default:
		if err := l.UnmarshalText([]byte(name)); err != nil {
			return l, fmt.Errorf("log level %q: use debug, info, warn or error", name)
		}
	}
	return l, nil
}
