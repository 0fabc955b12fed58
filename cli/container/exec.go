package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/id"
	"github.com/berthd/berth/cli/client"
	"github.com/berthd/berth/cli/rootfs"
	"github.com/berthd/berth/cli/session"
	"github.com/berthd/berth/cli/spec"
	"github.com/berthd/berth/cli/term"
)

// ExecFlags are those of exec.
type ExecFlags struct {
	detached, interactive, terminal, privileged bool
	user, dir, keys                             string
	env, envFiles                               []string
}

func (a *app) execCommand() *cobra.Command {
	var x ExecFlags
	cmd := session.OwnStatus(&cobra.Command{
		Use: "exec [flags] CONTAINER COMMAND [ARG...]", Short: "Run one more command in a running container",
		Long: `Run one more command in a running container, with its environment and its user unless the flags say
others. Exit status: the command's own, or as "berth run".`,
		Example: "  berth exec web ls /etc\n  berth exec -it web sh\n  berth exec -d -u nobody web touch /tmp/x",
		Args:    session.MinArgs(2), ValidArgsFunction: session.CompleteFirst(a.completeContainers(true)),
	})
	cmd.RunE = a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		k, err := Find(ctx, c, args[0])
		if err != nil {
			return err
		}
		return Exec(ctx, a.App, c, k, x, args[1:])
	})
	x.Add(cmd)
	return cmd
}

// Add adds the flags; what follows the first argument is the command's.
func (x *ExecFlags) Add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.BoolVarP(&x.detached, "detach", "d", false, "run in the background; its output is not kept")
	f.BoolVarP(&x.interactive, "interactive", "i", false, "give it stdin")
	f.BoolVarP(&x.terminal, "tty", "t", false, "give it a terminal")
	f.BoolVar(&x.privileged, "privileged", false, "all capabilities of the machine")
	f.StringVarP(&x.user, "user", "u", "", "`user[:group]` by name or number")
	f.StringVarP(&x.dir, "workdir", "w", "", "`directory` to start in")
	f.StringArrayVarP(&x.env, "env", "e", nil, "environment variable `NAME=VALUE`")
	f.StringArrayVar(&x.envFiles, "env-file", nil, "`file` of environment variables, one a line")
	f.StringVar(&x.keys, "detach-keys", term.DefaultKeys, "`keys` that leave the command running")
}

// Exec runs a command in a container that runs, and ends as it ends.
func Exec(ctx context.Context, s *session.App, c *client.Client, k *containersapi.Container, x ExecFlags, args []string) error {
	p, err := running(ctx, c, k)
	if err != nil {
		return err
	}
	if p.GetStatus() == task.Status_PAUSED {
		return errs.New(errs.FailedPrecondition, "container %s is paused; let it go on with `berth unpause %s`", client.DisplayName(k), client.DisplayName(k))
	}
	if x.terminal && x.interactive && !term.Is(s.In) {
		return errors.New("-it needs a terminal, and stdin is none: leave out -t")
	}
	process, err := x.process(ctx, c, k, args)
	if err != nil {
		return err
	}
	return (&app{s}).exec(ctx, c, k, x, process)
}

// process is the container's own with what the flags and the command change.
func (x *ExecFlags) process(ctx context.Context, c *client.Client, k *containersapi.Container, args []string) (*rspec.Process, error) {
	p := *specOf(k).Process
	p.Args, p.Terminal = args, x.terminal
	if x.dir != "" {
		p.Cwd = x.dir
	}
	env, err := spec.Environment(p.Env, x.envFiles, x.env, x.terminal, os.LookupEnv)
	if err != nil {
		return nil, err
	}
	p.Env = env
	if x.user != "" {
		m, err := c.Snapshots().Mounts(ctx, &snapshotsapi.MountsRequest{Snapshotter: k.GetSnapshotter(), Key: k.GetSnapshotKey()})
		if err != nil {
			return nil, err
		}
		user, home, err := rootfs.User(x.user, nil, func(name string) ([]byte, error) { return rootfs.ReadFile(m.GetMounts(), name) })
		if err != nil {
			return nil, err
		}
		p.User = user
		for i, e := range p.Env {
			if strings.HasPrefix(e, "HOME=") {
				p.Env[i] = "HOME=" + home
			}
		}
		if p.Capabilities != nil {
			caps := *p.Capabilities
			caps.Effective, caps.Permitted = caps.Bounding, caps.Bounding
			if user.UID != 0 {
				caps.Effective, caps.Permitted = nil, nil
			}
			p.Capabilities = &caps
		}
	}
	if x.privileged {
		all := spec.Held()
		p.Capabilities = &rspec.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all}
	}
	return &p, nil
}

// exec runs a process and ends as it ends.
func (a *app) exec(ctx context.Context, c *client.Client, k *containersapi.Container, x ExecFlags, p *rspec.Process) error {
	data, err := json.Marshal(p)
	if err != nil {
		return err
	}
	r := &tasksapi.ExecProcessRequest{
		ContainerID: k.GetID(), ExecID: "exec-" + id.New(8), Terminal: x.terminal,
		Spec: &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Process", Value: data},
	}
	if x.detached {
		if _, err := c.Tasks().Exec(ctx, r); err != nil {
			return err
		}
		if _, err := c.Tasks().Start(ctx, &tasksapi.StartRequest{ContainerID: k.GetID(), ExecID: r.GetExecID()}); err != nil {
			return errors.Join(explainStart(err), forgetExec(ctx, c, r))
		}
		return nil
	}
	f, err := term.MakeFIFOs(x.interactive, x.terminal)
	if err != nil {
		return err
	}
	defer f.Close()
	r.Stdin, r.Stdout, r.Stderr = f.Stdin, f.Stdout, f.Stderr
	status, err := a.execStreams(ctx, c, r, f, x)
	if errors.Is(err, term.ErrDetached) {
		fmt.Fprintf(a.Err, "\r\nThe command goes on in container %s.\r\n", client.DisplayName(k))
		return nil
	}
	if err != nil {
		return err
	}
	return exitStatus(status)
}

func forgetExec(ctx context.Context, c *client.Client, r *tasksapi.ExecProcessRequest) error {
	_, err := c.Tasks().DeleteProcess(ctx, &tasksapi.DeleteProcessRequest{ContainerID: r.GetContainerID(), ExecID: r.GetExecID()})
	return errs.Ignore(err, errs.NotFound)
}

func (a *app) execStreams(ctx context.Context, c *client.Client, r *tasksapi.ExecProcessRequest, f *term.FIFOs, x ExecFlags) (uint32, error) {
	keys, err := term.ParseKeys(x.keys)
	if err != nil {
		return 0, err
	}
	if _, err := c.Tasks().Exec(ctx, r); err != nil {
		return 0, err
	}
	if x.terminal {
		back, err := term.Raw(a.In)
		if err != nil {
			return 0, errors.Join(err, forgetExec(ctx, c, r))
		}
		defer back()
	}
	if _, err := c.Tasks().Start(ctx, &tasksapi.StartRequest{ContainerID: r.GetContainerID(), ExecID: r.GetExecID()}); err != nil {
		return 0, errors.Join(explainStart(err), forgetExec(context.WithoutCancel(ctx), c, r))
	}
	f.Opened()
	session, cancel := context.WithCancel(ctx)
	defer cancel()
	if out, ok := a.Out.(*os.File); ok && x.terminal && term.Is(out) {
		term.FollowSize(session, out, func(columns, rows uint16) {
			_, _ = c.Tasks().ResizePty(session, &tasksapi.ResizePtyRequest{ContainerID: r.GetContainerID(), ExecID: r.GetExecID(), Width: uint32(columns), Height: uint32(rows)}) // it may have ended
		})
	}
	left := make(chan error, 1)
	if x.interactive {
		// owner: a read of stdin cannot be interrupted: it ends with the program, or when
		// it writes next.
		go func() { left <- a.execInput(session, c, r, f, x.terminal, keys) }()
	}
	signal.Ignore(syscall.SIGPIPE) // who reads our output may leave; the process is to be seen to
	ended := make(chan error, 1)
	// owner: f.Close ends it; the channel holds its result.
	go func() { ended <- f.Copy(a.Out, a.Err) }()
	return a.execEnd(ctx, c, r, f, left, ended)
}

func (a *app) execInput(ctx context.Context, c *client.Client, r *tasksapi.ExecProcessRequest, f *term.FIFOs, terminal bool, keys []byte) error {
	in := io.Reader(a.In)
	if terminal {
		in = term.Detachable(in, keys)
	}
	err := f.Input(in)
	if errors.Is(err, term.ErrDetached) {
		return err
	}
	f.CloseInput()
	_, _ = c.Tasks().CloseIO(ctx, &tasksapi.CloseIORequest{ContainerID: r.GetContainerID(), ExecID: r.GetExecID(), Stdin: true}) // it may have ended
	return nil
}

// execEnd waits for the process to end, for the user to leave, or for an interrupt,
// which is the process's.
func (a *app) execEnd(ctx context.Context, c *client.Client, r *tasksapi.ExecProcessRequest, f *term.FIFOs, left, ended <-chan error) (uint32, error) {
	done := ctx.Done()
	free := context.WithoutCancel(ctx)
	type exit struct {
		status uint32
		err    error
	}
	exited := make(chan exit, 1)
	// owner: it ends with the process or the connection; the channel holds its result.
	go func() {
		w, err := c.Tasks().Wait(free, &tasksapi.WaitRequest{ContainerID: r.GetContainerID(), ExecID: r.GetExecID()})
		exited <- exit{w.GetExitStatus(), err}
	}()
	for {
		select {
		case err := <-left:
			if errors.Is(err, term.ErrDetached) {
				return 0, err
			}
			left = nil
		case <-done:
			done = nil
			if err := killExec(free, c, r, syscall.SIGINT); err != nil {
				return 0, err
			}
		case err := <-ended:
			// Nobody takes its output any more: it ends as at a pipe that nobody reads.
			if err == nil {
				ended = nil
				continue
			}
			// owner: f.Close ends it.
			go f.Discard() // or the shim would wait for the rest to be read
			for _, sig := range []syscall.Signal{syscall.SIGPIPE, syscall.SIGKILL} {
				if kerr := killExec(free, c, r, sig); kerr != nil {
					return 0, kerr
				}
				select {
				case e := <-exited:
					return e.status, errors.Join(e.err, forgetExec(free, c, r))
				case <-time.After(pipeTime):
				}
			}
			return 0, err
		case e := <-exited:
			if e.err != nil {
				return 0, e.err
			}
			if ended == nil {
				return e.status, forgetExec(free, c, r)
			}
			return e.status, lastOutput(free, c, r, f, ended)
		}
	}
}

// quietTime is how long an exec that has ended may be silent before its streams are
// closed: children of it may hold them.
const quietTime = 300 * time.Millisecond

// lastOutput waits until everything that an ended exec has written has been taken,
// and forgets the exec, which closes its streams.
func lastOutput(ctx context.Context, c *client.Client, r *tasksapi.ExecProcessRequest, f *term.FIFOs, ended <-chan error) error {
	tick := time.NewTicker(quietTime / 6)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			return errors.Join(err, forgetExec(ctx, c, r))
		case <-tick.C:
			if f.Idle() < quietTime {
				continue
			}
			if err := forgetExec(ctx, c, r); err != nil {
				return err
			}
			return <-ended
		}
	}
}

// pipeTime is how long a process may live on after its reader has left.
const pipeTime = 2 * time.Second

func killExec(ctx context.Context, c *client.Client, r *tasksapi.ExecProcessRequest, sig syscall.Signal) error {
	_, err := c.Tasks().Kill(ctx, &tasksapi.KillRequest{ContainerID: r.GetContainerID(), ExecID: r.GetExecID(), Signal: uint32(sig)})
	return errs.Ignore(err, errs.NotFound)
}
