package task

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/failpoint"
	"github.com/berthd/berth/base/spec"
	"github.com/berthd/berth/host/mount"
	"github.com/berthd/berth/host/shim"
	"github.com/berthd/berth/store"
)

// CreateRequest asks for the task of a container.
type CreateRequest struct {
	ID                    string // of the container
	Rootfs                []spec.Mount
	Stdin, Stdout, Stderr string
	Terminal              bool
	Checkpoint            string             // directory of an image to restore, or ""
	Restore               ocispec.Descriptor // a checkpoint that is content; zero: none
	Options               store.Any          // of the runtime; empty: the container's
	RuntimePath           string             // overrides the container's runtime
	TaskAddress           string             // a shim that runs already
	TaskVersion           int                // of that shim's API
	Run                   bool               // start it too
}

// cleanupTime bounds the undoing of one task.
const cleanupTime = time.Minute

// Create makes the task of a container: intent, bundle, shim, container. On any
// failure everything is taken back.
func (t *Tasks) Create(ctx context.Context, v store.Scoped, r CreateRequest) (uint32, error) {
	c, err := store.Get(ctx, v, func(tx *store.Tx) (store.Container, error) { return tx.Container(r.ID) })
	if err != nil {
		return 0, err
	}
	unlock, err := t.names.Lock(ctx, key{v.Namespace(), r.ID}.String())
	if err != nil {
		return 0, fmt.Errorf("create task %q: another create or delete of it is under way: %w", r.ID, err)
	}
	defer unlock()
	row := store.Task{ID: r.ID, Runtime: c.Runtime, Body: store.TaskBody{Options: r.Options, Group: group(c)}}
	if r.RuntimePath != "" {
		row.Runtime = r.RuntimePath
	}
	if row.Body.Options.Empty() {
		row.Body.Options = c.Options
	}
	if r.TaskAddress == "" {
		if _, err := t.cfg.Launcher.Find(row.Runtime); err != nil {
			return 0, fmt.Errorf("create task %q: %w", r.ID, err)
		}
	}
	if row, err = store.Set(ctx, v, func(tx *store.Tx) (store.Task, error) { return tx.CreateTask(row) }); err != nil {
		return 0, err
	}
	failpoint.Here("task.intent")
	task := newTask(row)
	pid, err := t.make(ctx, v, task, c, r)
	if err != nil {
		return 0, errors.Join(fmt.Errorf("create task %q: %w", r.ID, err), t.takeBack(ctx, task))
	}
	close(task.settled)
	t.put(task)
	return pid, nil
}

func (t *Tasks) make(ctx context.Context, v store.Scoped, task *Task, c store.Container, r CreateRequest) (uint32, error) {
	if err := t.makeBundle(task.key, c.Spec); err != nil {
		return 0, err
	}
	if err := t.followShim(task); err != nil {
		return 0, err
	}
	release, err := t.lendLogger(ctx, task, &r)
	if err != nil {
		return 0, err
	}
	defer release()
	failpoint.Here("task.bundle")
	if slices.ContainsFunc(r.Rootfs, mapsIDs) {
		// Shims cannot map the ids of a mount: they get the root file system mounted.
		if err := mount.All(r.Rootfs, filepath.Join(t.bundle(task.key), "rootfs")); err != nil {
			return 0, err
		}
		r.Rootfs = nil
	}
	restore, err := t.restoreDir(ctx, v, task, r)
	if err != nil {
		return 0, err
	}
	b, err := t.startShim(ctx, task, r)
	if err != nil {
		return 0, err
	}
	failpoint.Here("task.shim")
	body := &task.row.Body
	body.Version, body.Address, body.Protocol, body.External = b.Version, b.Address, b.Protocol, r.TaskAddress != ""
	if err := v.Update(ctx, func(tx *store.Tx) error { return tx.PutTask(task.row) }); err != nil {
		return 0, err
	}
	if task.use, err = t.connect(ctx, task, b); err != nil {
		return 0, err
	}
	req := shim.CreateRequest{
		Bundle: t.bundle(task.key), Rootfs: r.Rootfs, Terminal: r.Terminal, Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr,
		Checkpoint: restore, Options: body.Options,
	}
	if body.Pid, err = t.createOrRun(ctx, task.api(), req, r.Run); err != nil {
		return 0, err
	}
	failpoint.Here("task.created")
	task.row.State = store.TaskReady
	return body.Pid, v.Update(ctx, func(tx *store.Tx) error { return tx.PutTask(task.row) })
}

// createOrRun makes the container, and with run lets it run: in one go where the shim
// can do that.
func (t *Tasks) createOrRun(ctx context.Context, api shim.Task, req shim.CreateRequest, run bool) (uint32, error) {
	if !run {
		return api.Create(ctx, req)
	}
	pid, err := api.Run(ctx, req)
	if !errs.Is(err, errs.Unimplemented) {
		return pid, err
	}
	if _, err = api.Create(ctx, req); err != nil {
		return 0, err
	}
	failpoint.Here("task.created.to.run")
	return api.Start(ctx, "")
}

// mapsIDs reports a mount that shows its files to a user namespace.
func mapsIDs(m spec.Mount) bool {
	return slices.ContainsFunc(m.Options, func(o string) bool { return strings.HasPrefix(o, "uidmap=") || strings.HasPrefix(o, "gidmap=") })
}

// startShim finds the shim for a task: one that the client names, the one of its
// group, or a new one.
func (t *Tasks) startShim(ctx context.Context, task *Task, r CreateRequest) (shim.Bootstrap, error) {
	if r.TaskAddress != "" {
		if r.TaskVersion == 0 {
			r.TaskVersion = 2
		}
		return parseAddress(r.TaskAddress, r.TaskVersion), nil
	}
	if b, ok := t.cfg.Sandbox(task.key.ns, task.row.Body.Group); ok && b.Version >= 3 {
		return b, nil
	}
	if b, ok := t.groupShim(task); ok {
		return b, nil
	}
	return t.cfg.Launcher.Start(ctx, t.params(task))
}

func (t *Tasks) connect(ctx context.Context, task *Task, b shim.Bootstrap) (*Use, error) {
	return t.cfg.Shims.Connect(ctx, b, func() { t.lost(task) })
}

func (t *Tasks) params(task *Task) shim.Params {
	return shim.Params{Namespace: task.key.ns, ID: task.key.id, Bundle: t.bundle(task.key), Runtime: task.row.Runtime, Options: task.row.Body.Options, Group: cmp.Or(task.row.Body.Group, task.key.id)}
}

// groupShim returns the shim of the task's group, if its API has no start for
// each container (version 3). A version 2 shim is asked by its start command.
func (t *Tasks) groupShim(task *Task) (shim.Bootstrap, bool) {
	if task.row.Body.Group == "" {
		return shim.Bootstrap{}, false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, other := range t.mu.tasks {
		if other.key.ns == task.key.ns && other.row.Body.Group == task.row.Body.Group && other.row.Runtime == task.row.Runtime && other.use != nil {
			if b := other.use.Conn.Bootstrap(); b.Version >= 3 {
				return b, true
			}
		}
	}
	return shim.Bootstrap{}, false
}

// group is what containers have in common that share a shim: the annotations of
// containerd and of CRI, in that order.
func group(c store.Container) string {
	var s struct {
		Annotations map[string]string `json:"annotations"`
	}
	if json.Unmarshal(c.Spec.Value, &s) != nil {
		return c.Sandbox
	}
	for _, k := range []string{"io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"} {
		if g := s.Annotations[k]; g != "" {
			return g
		}
	}
	return c.Sandbox
}

// takeBack undoes a create that failed, on its own time.
func (t *Tasks) takeBack(ctx context.Context, task *Task) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	_, err := t.teardown(ctx, task)
	return err
}

// teardown is the one way down for a task that cannot be deleted in the ordinary
// way: a failed create, a dead shim, a row that an earlier daemon left. It may be
// called again for what an earlier call could not do; it says how the init ended.
func (t *Tasks) teardown(ctx context.Context, task *Task) (shim.Exit, error) {
	exit, err := t.endShim(ctx, task)
	if err != nil {
		return exit, err
	}
	if err := t.removeBundle(task.key); err != nil {
		return exit, err
	}
	err = t.store.In(store.Scope{Namespace: task.key.ns}).Update(ctx, func(tx *store.Tx) error { return tx.DeleteTask(task.key.id) })
	t.forget(task)
	return exit, err
}

// endShim ends the container through its shim if that still answers, and through
// the shim's delete command in any case: that finds what a dead shim left.
func (t *Tasks) endShim(ctx context.Context, task *Task) (shim.Exit, error) {
	var exit shim.Exit
	deleted := false
	if b := t.lastAddress(task); task.use == nil && b.Address != "" && task.row.Boot == t.store.BootID() {
		if u, err := t.connect(ctx, task, b); err == nil {
			task.use = u
		}
	}
	if task.use != nil {
		exit, deleted = t.deleteByForce(ctx, task)
		last, err := t.shutdown(ctx, task)
		if err != nil {
			t.log.Warn("end shim", "task", task.key, "error", err)
		}
		if deleted || !last {
			return exit, nil
		}
	}
	if task.row.Body.External || task.row.Boot != t.store.BootID() {
		return exit, nil
	}
	if _, err := t.cfg.Launcher.Find(task.row.Runtime); err != nil && task.row.Body.Address == "" {
		return exit, nil // its program is not there: nothing was started
	}
	end, err := t.cfg.Launcher.Delete(ctx, t.params(task))
	// What the shim's command finds in the bundle may be gone with that already.
	if dead := shim.RemoveDeadSocket(task.row.Body.Address); dead != nil {
		t.log.Warn("a dead shim's socket stays", "task", task.key, "error", dead)
	}
	if err != nil && !t.livesOn(task.key) {
		// Some shims cannot clean up after what they never finished making.
		t.log.Warn("a shim does not clean up; nothing of the container lives, so its files go", "task", task.key, "error", err)
		return exit, nil
	}
	return end, err
}

// livesOn reports whether a process that shims note in the bundle is alive: the
// container's first, or the shim itself.
func (t *Tasks) livesOn(k key) bool {
	for _, name := range []string{"init.pid", "shim.pid"} {
		text, err := os.ReadFile(filepath.Join(t.bundle(k), name))
		if err != nil {
			continue
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err == nil && pid > 0 && unix.Kill(pid, 0) == nil {
			return true
		}
	}
	return false
}

// deleteByForce kills and deletes a container whose shim answers.
func (t *Tasks) deleteByForce(ctx context.Context, task *Task) (shim.Exit, bool) {
	api := task.api()
	if err := api.Kill(ctx, "", 9, true); err == nil {
		wait, cancel := context.WithTimeout(ctx, 10*time.Second)
		_, _ = api.Wait(wait, "")
		cancel()
	}
	exit, err := api.Delete(ctx, "")
	return exit, err == nil || errs.Is(err, errs.NotFound)
}

// shutdown gives up the task's use of its shim and asks the shim to end if that was
// the last use of it. The connection is nil after it.
func (t *Tasks) shutdown(ctx context.Context, task *Task) (last bool, err error) {
	u, api := task.use, task.api()
	t.mu.Lock()
	task.use = nil
	t.mu.Unlock()
	if last = t.cfg.Shims.leave(u); !last {
		return false, nil
	}
	if !task.row.Body.External {
		short, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		// A shim with containers left stays; one that ends at once cannot answer.
		err = errs.Ignore(api.Shutdown(short, false), errs.Unavailable)
	}
	err = errors.Join(err, u.Conn.Close())
	if !task.row.Body.External {
		err = errors.Join(err, shim.RemoveDeadSocket(u.Conn.Bootstrap().Address))
	}
	return true, err
}

func bootstrapOf(b store.TaskBody) shim.Bootstrap {
	return shim.Bootstrap{Version: b.Version, Address: b.Address, Protocol: b.Protocol}
}
