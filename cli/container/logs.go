package container

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	"github.com/spf13/cobra"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/cli/client"
	"github.com/berthd/berth/cli/logfile"
	"github.com/berthd/berth/cli/session"
)

// LogFlags are those of logs, for containers and pods.
type LogFlags struct {
	Follow       bool
	stamps       bool
	tail         string
	since, until string
}

// Add adds the flags.
func (l *LogFlags) Add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVarP(&l.Follow, "follow", "f", false, "go on as more is written, until the container ends")
	f.BoolVarP(&l.stamps, "timestamps", "t", false, "show when each line was written")
	f.StringVar(&l.tail, "tail", "all", "only the last `N` lines")
	f.StringVar(&l.since, "since", "", "only from a `TIME`: 2026-11-29T10:00:00Z, 1764410400, or 10m for ten minutes ago")
	f.StringVar(&l.until, "until", "", "only up to a `TIME`")
}

// parseTime reads a time as users write it; relative ones are before now.
func parseTime(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d), nil
	}
	if f, err := strconv.ParseFloat(s, 64); err == nil {
		return time.Unix(0, int64(f*1e9)), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, errs.New(errs.InvalidArgument, "time %q: write 2026-11-29T10:00:00Z, seconds since 1970, or 10m for ten minutes ago", s)
}

func (l *LogFlags) options(now time.Time) (o logfile.Options, err error) {
	o.Tail = -1
	if l.tail != "all" {
		if o.Tail, err = strconv.Atoi(l.tail); err != nil {
			return o, errs.New(errs.InvalidArgument, "--tail %q: use a number or all", l.tail)
		}
	}
	if o.Since, err = parseTime(l.since, now); err == nil {
		o.Until, err = parseTime(l.until, now)
	}
	return o, err
}

// Print reads a log to out and err. ended is for --follow.
func (l *LogFlags) Print(ctx context.Context, path string, out, err io.Writer, ended <-chan struct{}) error {
	o, oerr := l.options(time.Now())
	if oerr != nil {
		return oerr
	}
	if l.Follow {
		o.Ended = ended
	}
	open := [2]bool{} // a line of the stream has begun
	return logfile.Read(ctx, path, o, func(e logfile.Entry) error {
		w, i := out, 0
		if e.Stderr {
			w, i = err, 1
		}
		if l.stamps && !open[i] {
			if _, err := fmt.Fprint(w, e.Time.UTC().Format("2006-01-02T15:04:05.000000000Z07:00"), " "); err != nil {
				return err
			}
		}
		open[i] = e.Partial
		_, werr := w.Write(e.Bytes())
		return werr
	})
}

func (a *app) logsCommand() *cobra.Command {
	var l LogFlags
	cmd := &cobra.Command{
		Use: "logs [flags] CONTAINER", Short: "Show what a container has written",
		Long: `Show what a container has written, stdout on stdout and stderr on stderr. The container's shim keeps
it, whether or not anybody is attached and whether or not the daemon runs.`,
		Example: "  berth logs web\n  berth logs -f --tail 10 web\n  berth logs -t --since 5m web",
		Args:    session.ExactArgs(1), ValidArgsFunction: a.completeContainers(false),
	}
	cmd.RunE = a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		k, err := Find(ctx, c, args[0])
		if err != nil {
			return err
		}
		path, err := a.logOf(ctx, c, k)
		if err != nil {
			return err
		}
		ended := make(chan struct{})
		if l.Follow {
			// owner: it ends when the container does, or with ctx.
			go func() {
				defer close(ended)
				untilEnded(ctx, c, k)
			}()
		}
		return l.Print(ctx, path, a.Out, a.Err, ended)
	})
	l.Add(cmd)
	return cmd
}

// logOf is where a container's log is.
func (a *app) logOf(ctx context.Context, c *client.Client, k *containersapi.Container) (string, error) {
	if p := logPath(k); p != "" {
		return p, nil
	}
	if k.GetLabels()[client.LabelLog] != "" {
		return "", errs.New(errs.FailedPrecondition, "container %s was made with --log-driver none: nothing is kept", client.DisplayName(k))
	}
	own := c.In(c.Namespace).WithOwnPods() // it may be a pod's
	if s, err := own.Pods().ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: k.GetID()}); err == nil && s.GetStatus().GetLogPath() != "" {
		return s.GetStatus().GetLogPath(), nil
	}
	return "", errs.New(errs.FailedPrecondition, "container %s was not made by berth: its output went to whoever made it", client.DisplayName(k))
}

// restartPause is how long a container that the daemon starts again may be down
// before a follower looks again.
const restartPause = 300 * time.Millisecond

// untilEnded waits until a container has ended for good.
func untilEnded(ctx context.Context, c *client.Client, k *containersapi.Container) {
	for ctx.Err() == nil {
		if _, err := settled(ctx, c, k); err != nil && !errs.Is(err, errs.NotFound) {
			return
		}
		r, err := c.Containers().Get(ctx, &containersapi.GetContainerRequest{ID: k.GetID()})
		if err != nil || r.GetContainer().GetLabels()[client.LabelRestartStatus] != "running" {
			return
		}
		select {
		case <-time.After(restartPause):
		case <-ctx.Done():
		}
	}
}
