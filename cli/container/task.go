package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/cli/client"
	"github.com/berthd/berth/cli/session"
)

// makeTask makes a container's task, which does not run yet. What is left of the
// one before is removed.
func makeTask(ctx context.Context, c *client.Client, k *containersapi.Container) error {
	p, err := TaskOf(ctx, c, k.GetID())
	if err != nil {
		return err
	}
	if IsUp(p) {
		return errs.New(errs.FailedPrecondition, "container %s runs already", client.DisplayName(k))
	}
	if p != nil {
		if err := deleteTask(ctx, c, k.GetID()); err != nil {
			return err
		}
	}
	m, err := c.Snapshots().Mounts(ctx, &snapshotsapi.MountsRequest{Snapshotter: k.GetSnapshotter(), Key: k.GetSnapshotKey()})
	if err != nil {
		return fmt.Errorf("root file system of container %s: %w", client.DisplayName(k), err)
	}
	labels, s := k.GetLabels(), specOf(k)
	r := &tasksapi.CreateTaskRequest{
		ContainerID: k.GetID(), Rootfs: m.GetMounts(), Options: k.GetRuntime().GetOptions(),
		Stdin: labels[client.LabelStdin], Stdout: labels[client.LabelLog], Stderr: labels[client.LabelLog], Terminal: s.Process.Terminal,
	}
	if r.Terminal {
		r.Stderr = ""
	}
	if dir := labels[client.LabelDir]; dir != "" {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("directory of container %s: %w", client.DisplayName(k), err)
		}
	}
	_, err = c.Tasks().Create(ctx, r)
	return explainStart(err)
}

// startTask starts a task that was made.
func startTask(ctx context.Context, c *client.Client, id string) error {
	_, err := c.Tasks().Start(ctx, &tasksapi.StartRequest{ContainerID: id})
	return explainStart(err)
}

// explainStart gives the exit status that Docker gives to a command that is not
// there (127) or cannot be executed (126); the runtime says which only in words.
func explainStart(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	code := session.ExitBerth
	switch {
	case !strings.Contains(text, "exec:") && !strings.Contains(text, "exec ") && !strings.Contains(text, "stat "):
	case strings.Contains(text, "executable file not found"), strings.Contains(text, "no such file or directory"):
		code = session.ExitNotFound
	case strings.Contains(text, "permission denied"), strings.Contains(text, "is a directory"), strings.Contains(text, "exec format error"):
		code = session.ExitNoRun
	}
	return session.ExitCode{Code: code, Err: err}
}

// deleteTask removes a task that has ended.
func deleteTask(ctx context.Context, c *client.Client, id string) error {
	_, err := c.Tasks().Delete(ctx, &tasksapi.DeleteTaskRequest{ContainerID: id})
	return errs.Ignore(err, errs.NotFound)
}

// kill signals a container's processes; one that has ended is no error with gone.
func kill(ctx context.Context, c *client.Client, id string, s syscall.Signal, all bool) error {
	_, err := c.Tasks().Kill(ctx, &tasksapi.KillRequest{ContainerID: id, Signal: uint32(s), All: all})
	return err
}

// waitExit waits for the end of a task.
func waitExit(ctx context.Context, c *client.Client, id string) (uint32, error) {
	r, err := c.Tasks().Wait(ctx, &tasksapi.WaitRequest{ContainerID: id})
	return r.GetExitStatus(), err
}

// stop ends a container: its stop signal, and SIGKILL when that does not help in
// time. A restart policy does not start it again.
func stop(ctx context.Context, c *client.Client, k *containersapi.Container, seconds int, signal string) error {
	if err := setRestart(ctx, c, k, false); err != nil {
		return err
	}
	p, err := TaskOf(ctx, c, k.GetID())
	if err != nil || !IsUp(p) {
		return err
	}
	if signal == "" {
		signal = k.GetLabels()[client.LabelStopSignal]
	}
	sig := syscall.SIGTERM
	if signal != "" {
		if sig, err = ParseSignal(signal); err != nil {
			return err
		}
	}
	if seconds < 0 {
		seconds = defaultStopTime
		if n, err := strconv.Atoi(k.GetLabels()[client.LabelStopTime]); err == nil {
			seconds = n
		}
	}
	if err := errs.Ignore(kill(ctx, c, k.GetID(), sig, false), errs.NotFound); err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, time.Duration(seconds)*time.Second)
	defer cancel()
	if _, err := waitExit(wait, c, k.GetID()); err == nil || errs.Is(err, errs.NotFound) || ctx.Err() != nil {
		return errs.Ignore(err, errs.NotFound)
	}
	return KillHard(ctx, c, k.GetID())
}

// KillHard ends every process of a container, also of a paused one, and waits.
func KillHard(ctx context.Context, c *client.Client, id string) error {
	if err := errs.Ignore(kill(ctx, c, id, syscall.SIGKILL, true), errs.NotFound); err != nil {
		return err
	}
	if p, err := TaskOf(ctx, c, id); err == nil && IsUp(p) && p.GetStatus().String() != "RUNNING" {
		_, _ = c.Tasks().Resume(ctx, &tasksapi.ResumeTaskRequest{ContainerID: id}) // a frozen process cannot die
	}
	_, err := waitExit(ctx, c, id)
	return errs.Ignore(err, errs.NotFound)
}

// setRestart tells the daemon whether to keep a container with a policy running.
func setRestart(ctx context.Context, c *client.Client, k *containersapi.Container, on bool) error {
	if k.GetLabels()[client.LabelRestartPolicy] == "" {
		return nil
	}
	change := map[string]string{client.LabelRestartStatus: "stopped", client.LabelRestartStopped: "true"}
	if on {
		change = map[string]string{client.LabelRestartStatus: "running", client.LabelRestartStopped: "false"}
	}
	return Relabel(ctx, c, k, change)
}

// Relabel changes labels of a container, and of its description at hand.
func Relabel(ctx context.Context, c *client.Client, k *containersapi.Container, change map[string]string) error {
	var paths []string
	if k.Labels == nil {
		k.Labels = map[string]string{}
	}
	for key, v := range change {
		k.Labels[key] = v
		paths = append(paths, "labels."+key)
	}
	_, err := c.Containers().Update(ctx, &containersapi.UpdateContainerRequest{
		Container: &containersapi.Container{ID: k.GetID(), Labels: k.Labels}, UpdateMask: &fieldmaskpb.FieldMask{Paths: paths},
	})
	return err
}

// Remove removes a container with all that is its own. One that runs is an error
// unless force is set.
func Remove(ctx context.Context, s *session.App, c *client.Client, k *containersapi.Container, force bool) error {
	return (&app{s}).removeContainer(ctx, c, k, force)
}

// removeContainer removes a container with all that is its own. One that runs is an
// error unless force is set.
func (a *app) removeContainer(ctx context.Context, c *client.Client, k *containersapi.Container, force bool) error {
	p, err := TaskOf(ctx, c, k.GetID())
	if err != nil {
		return err
	}
	if IsUp(p) {
		if !force {
			return errs.New(errs.FailedPrecondition, "container %s runs: stop it with `berth stop %s`, or use -f", client.DisplayName(k), client.DisplayName(k))
		}
		if err := setRestart(ctx, c, k, false); err != nil {
			return err
		}
		if err := KillHard(ctx, c, k.GetID()); err != nil {
			return err
		}
	}
	if p != nil {
		if err := deleteTask(ctx, c, k.GetID()); err != nil {
			return err
		}
	}
	if err := networkOf(k).remove(ctx, c); err != nil {
		return err
	}
	if _, err := c.Containers().Delete(ctx, &containersapi.DeleteContainerRequest{ID: k.GetID()}); err != nil {
		return err
	}
	var serr error
	if k.GetSnapshotKey() != "" {
		_, serr = c.Snapshots().Remove(ctx, &snapshotsapi.RemoveSnapshotRequest{Snapshotter: k.GetSnapshotter(), Key: k.GetSnapshotKey()})
	}
	return errors.Join(errs.Ignore(serr, errs.NotFound), a.removeDir(ctx, c, k))
}

// removeDir removes the files of a container. The label is no proof of whose the
// directory is: only the place that follows from the id is removed.
func (a *app) removeDir(ctx context.Context, c *client.Client, k *containersapi.Container) error {
	dir := k.GetLabels()[client.LabelDir]
	if dir == "" {
		return nil
	}
	pl, err := c.Places(ctx)
	if err != nil {
		return err
	}
	if want := pl.Dir(k.GetID()); filepath.Clean(dir) != want {
		a.Debugf("directory %s of container %s is not where ours are: it stays", dir, k.GetID())
		return nil
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return nil
}
