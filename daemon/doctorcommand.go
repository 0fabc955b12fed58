package daemon

import (
	"encoding/json"
	"errors"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/daemon/config"
	"github.com/berthd/berth/daemon/doctor"
	"github.com/berthd/berth/store"
)

// DoctorCommand is `berth doctor`.
func DoctorCommand() *cobra.Command {
	var file string
	var o config.Override
	var quiet, asJSON, forget bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Examine this machine and the daemon, and say what to do",
		Long: `Examine this machine and the daemon, and say what to do: the kernel, cgroups, programs, pod networks, disks, the
configuration, and what a running daemon reports: parts that are missing, rows that it set aside, shims that hang.

It changes nothing. The exit status is 1 if something fails that most containers need.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, v := range []string{"BERTH_ADDRESS", "CONTAINERD_ADDRESS"} {
				o.Address = or(o.Address, os.Getenv(v))
			}
			cfg, err := config.Load(file, o)
			log := slog.New(slog.DiscardHandler)
			if forget {
				return errors.Join(err, forgetAsides(cmd, cfg, log))
			}
			all := doctor.Examine(cmd.Context(), doctor.Config{Config: cfg, Bad: err, Log: log})
			w := cmd.OutOrStdout()
			if asJSON {
				e := json.NewEncoder(w)
				e.SetIndent("", "  ")
				return e.Encode(all)
			}
			worst, err := doctor.Write(w, all, quiet)
			if err == nil && worst == doctor.Fail {
				err = errors.New("something is missing that most containers need: see the lines that begin with fail")
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVarP(&file, "config", "c", "", "configuration `file` (default "+config.DefaultFile+", if it is there)")
	f.StringVar(&o.Root, "root", "", "the daemon's --root")
	f.StringVar(&o.State, "state", "", "the daemon's --state")
	f.StringVarP(&o.Address, "address", "a", "", "the daemon's --address")
	f.BoolVarP(&quiet, "quiet", "q", false, "only warnings and failures")
	f.BoolVar(&asJSON, "json", false, "the report as JSON")
	f.BoolVar(&forget, "forget", false, "with the daemon stopped: forget the rows that were set aside, and a damage of the database")
	return cmd
}

func forgetAsides(cmd *cobra.Command, cfg config.Config, log *slog.Logger) error {
	boot, err := bootID()
	if err != nil {
		return err
	}
	s, err := store.Open(cmd.Context(), store.Config{Root: cfg.Root, BootID: boot, Log: log})
	if err != nil {
		return err
	}
	return errors.Join(s.ForgetAsides(cmd.Context()), s.Close())
}
