// Package runc is an OCI runtime that is a program with runc's command line (runc,
// crun, youki). It starts the program only where there is no other way: processes
// are signalled, listed, frozen and thawed directly. It owns the files it puts into
// a bundle: log.json and init.pid stay; pid files, specs and sockets of execs do not.
package runc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/host/child"
	"github.com/berthd/berth/host/oci"
)

// Config says which program, and with which options. The zero value of a field
// leaves the option out.
type Config struct {
	Binary        string // name to look up on PATH, or a path; "" is "runc"
	Root          string // directory of the runtime's own state
	SystemdCgroup bool
	NoPivotRoot   bool
	NoNewKeyring  bool
}

// Runtime runs one kind of container. It is safe for concurrent use.
type Runtime struct {
	config Config
	reaper *child.Reaper
}

// New returns the runtime. The reaper must run while it is used.
func New(c Config, r *child.Reaper) *Runtime {
	if c.Binary == "" {
		c.Binary = "runc"
	}
	return &Runtime{config: c, reaper: r}
}

// Create makes the container; its first process waits for Start.
func (r *Runtime) Create(ctx context.Context, c oci.Create) (oci.Started, error) {
	return r.make(ctx, c, []string{"create"}, nil)
}

// Run makes and starts the container in one program start.
func (r *Runtime) Run(ctx context.Context, c oci.Create) (oci.Started, error) {
	return r.make(ctx, c, []string{"run", "--detach"}, nil)
}

// Restore makes a running container from a checkpoint.
func (r *Runtime) Restore(ctx context.Context, c oci.Create, from oci.Checkpoint) (oci.Started, error) {
	return r.make(ctx, c, []string{"restore", "--detach", "--no-subreaper"}, checkpointArgs(from))
}

func (r *Runtime) make(ctx context.Context, c oci.Create, verb, more []string) (oci.Started, error) {
	pidFile := filepath.Join(c.Bundle, "init.pid")
	args := append(verb, "--bundle", c.Bundle, "--pid-file", pidFile)
	if r.config.NoPivotRoot {
		args = append(args, "--no-pivot")
	}
	if r.config.NoNewKeyring && verb[0] != "restore" {
		args = append(args, "--no-new-keyring")
	}
	call := call{bundle: c.Bundle, log: "log.json", id: c.ID, args: append(args, more...), stdio: c.Stdio}
	return r.start(ctx, call, "OCI runtime "+verb[0]+" failed", pidFile, c.Terminal, "init.tty")
}

// Exec starts one more process in the container. The terminal flag of the spec is
// overwritten by the request's.
func (r *Runtime) Exec(ctx context.Context, e oci.Exec) (oci.Started, error) {
	spec, err := withTerminal(e.Process, e.Terminal)
	if err != nil {
		return oci.Started{}, err
	}
	name := func(ending string) string { return filepath.Join(e.Bundle, e.ExecID+ending) }
	files := []string{name(".process.json"), name(".pid"), name(".log.json")}
	defer func() {
		for _, f := range files {
			_ = os.Remove(f)
		}
	}()
	if err := os.WriteFile(files[0], spec, 0o600); err != nil {
		return oci.Started{}, fmt.Errorf("write spec of exec %s: %w", e.ExecID, err)
	}
	args := append([]string{"exec", "--process", files[0], "--detach", "--pid-file", files[1]}, e.More...)
	call := call{bundle: e.Bundle, log: filepath.Base(files[2]), id: e.ID, args: args, stdio: e.Stdio}
	return r.start(ctx, call, "OCI runtime exec failed", files[1], e.Terminal, e.ExecID+".tty")
}

func withTerminal(spec []byte, terminal bool) ([]byte, error) {
	var p map[string]json.RawMessage
	if err := json.Unmarshal(spec, &p); err != nil {
		return nil, errs.New(errs.InvalidArgument, "read process spec: %v", err)
	}
	if p == nil {
		return nil, errs.New(errs.InvalidArgument, "read process spec: it is empty")
	}
	p["terminal"] = json.RawMessage(strconv.FormatBool(terminal))
	return json.Marshal(p)
}

// start runs a verb that leaves a process behind.
func (r *Runtime) start(ctx context.Context, c call, what, pidFile string, terminal bool, socket string) (oci.Started, error) {
	_ = os.Remove(pidFile)
	var tty *console
	if terminal {
		var err error
		if tty, err = listenConsole(c.bundle, socket); err != nil {
			return oci.Started{}, err
		}
		defer tty.close()
		c.args = append(c.args, "--console-socket", socket)
	}
	if err := r.run(ctx, c); err != nil {
		return oci.Started{}, fmt.Errorf("%s: %w", what, err)
	}
	s := oci.Started{}
	text, err := os.ReadFile(pidFile)
	if err == nil {
		s.Pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
	}
	if err != nil || s.Pid <= 0 {
		return oci.Started{}, fmt.Errorf("%s: it left no pid in %s: %w", what, pidFile, err)
	}
	if terminal {
		if s.Console, err = tty.receive(); err != nil {
			_ = syscall.Kill(s.Pid, syscall.SIGKILL)
			return oci.Started{}, fmt.Errorf("%s: %w", what, err)
		}
	}
	return s, nil
}

// Start lets the first process of a created container go on.
func (r *Runtime) Start(ctx context.Context, id, bundle string) error {
	if err := r.run(ctx, call{bundle: bundle, log: "log.json", id: id, args: []string{"start"}, keepStderr: true}); err != nil {
		return fmt.Errorf("OCI runtime start failed: %w", err)
	}
	return nil
}

// Delete removes what the runtime keeps of a container, and its cgroup. A runtime
// that does not know it any more is no error.
func (r *Runtime) Delete(ctx context.Context, id, bundle string, force bool) error {
	args := []string{"delete"}
	if force {
		args = append(args, "--force")
	}
	err := r.run(ctx, call{bundle: bundle, log: "log.json", id: id, args: args, keepStderr: true})
	if err != nil && !strings.Contains(err.Error(), "does not exist") {
		return fmt.Errorf("OCI runtime delete failed: %w", err)
	}
	return nil
}

// Update changes the limits of a container; resources are LinuxResources as JSON.
func (r *Runtime) Update(ctx context.Context, id, bundle string, resources []byte) error {
	in, err := memfile("resources", resources)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	c := call{bundle: bundle, log: "log.json", id: id, args: []string{"update", "--resources", "-"}, keepStderr: true}
	c.stdio.Stdin = in
	if err := r.run(ctx, c); err != nil {
		return fmt.Errorf("OCI runtime update failed: %w", err)
	}
	return nil
}

// Checkpoint writes the state of a container to the image path.
func (r *Runtime) Checkpoint(ctx context.Context, id, bundle string, to oci.Checkpoint) error {
	args := append([]string{"checkpoint"}, checkpointArgs(to)...)
	if to.LeaveRunning {
		args = append(args, "--leave-running")
	}
	if err := r.run(ctx, call{bundle: bundle, log: "log.json", id: id, args: args, keepStderr: true}); err != nil {
		return fmt.Errorf("OCI runtime checkpoint failed: %w", err)
	}
	return nil
}

func checkpointArgs(c oci.Checkpoint) []string {
	var args []string
	text := func(flag, value string) {
		if value != "" {
			args = append(args, flag, value)
		}
	}
	set := func(flag string, on bool) {
		if on {
			args = append(args, flag)
		}
	}
	text("--image-path", c.ImagePath)
	text("--work-path", c.WorkPath)
	text("--parent-path", c.ParentPath)
	text("--manage-cgroups-mode", c.CgroupsMode)
	set("--tcp-established", c.OpenTCP)
	set("--ext-unix-sk", c.ExternalUnixSockets)
	set("--shell-job", c.ShellJob)
	set("--file-locks", c.FileLocks)
	for _, ns := range c.EmptyNamespaces {
		args = append(args, "--empty-ns", ns)
	}
	return args
}

// Features is the runtime's OCI features document, as JSON.
func (r *Runtime) Features(ctx context.Context) ([]byte, error) {
	data, err := r.Output(ctx, Verb{Args: []string{"features"}})
	if err == nil && !json.Valid(data) {
		err = errors.New("it printed no JSON")
	}
	if err != nil {
		return nil, fmt.Errorf("ask %s for its features: %w", r.config.Binary, err)
	}
	return bytes.TrimSpace(data), nil
}

// Verb is one call of a program that knows more than runc does.
type Verb struct {
	Bundle string // working directory; the log goes there
	ID     string // of the container
	Args   []string
	After  []string // arguments that follow the id
	Stdio  oci.Stdio
}

// Verb runs it. Without a Stderr the program's words go into the error.
func (r *Runtime) Verb(ctx context.Context, v Verb) error {
	return r.run(ctx, call{bundle: v.Bundle, id: v.ID, args: v.Args, after: v.After, stdio: v.Stdio, keepStderr: v.Stdio.Stderr == nil})
}

// Output runs a verb and returns what it printed.
func (r *Runtime) Output(ctx context.Context, v Verb) ([]byte, error) {
	out, err := memfile("output", nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = out.Close() }()
	v.Stdio.Stdout = out
	if err := r.Verb(ctx, v); err != nil {
		return nil, err
	}
	return io.ReadAll(io.NewSectionReader(out, 0, 1<<20))
}

// call is one start of the program.
type call struct {
	bundle     string // working directory, so that short names reach into it
	log        string // file in the bundle
	id         string // follows the arguments
	args       []string
	after      []string // follow the id
	stdio      oci.Stdio
	keepStderr bool // for the message, where the container does not get it
}

// run starts the program and waits for it. If ctx ends first, the program and what
// it has started in its process group are killed.
func (r *Runtime) run(ctx context.Context, c call) error {
	path, err := lookup(r.config.Binary)
	if err != nil {
		return err
	}
	args := []string{r.config.Binary}
	if r.config.Root != "" {
		args = append(args, "--root", r.config.Root)
	}
	var logged int64
	logFile := ""
	if c.log != "" {
		logFile = filepath.Join(c.bundle, c.log)
		args = append(args, "--log", logFile, "--log-format", "json")
		if st, err := os.Stat(logFile); err == nil {
			logged = st.Size()
		}
	}
	if r.config.SystemdCgroup {
		args = append(args, "--systemd-cgroup")
	}
	args = append(args, c.args...)
	if c.id != "" {
		args = append(args, c.id)
	}
	args = append(args, c.after...)
	var said *os.File
	if c.keepStderr {
		if said, err = memfile("stderr", nil); err != nil {
			return err
		}
		defer func() { _ = said.Close() }()
		c.stdio.Stderr = said
	}
	pid, exit, err := r.reaper.Start(child.Program{
		Path:      path,
		Args:      args,
		Env:       environ(),
		Dir:       c.bundle,
		Files:     []*os.File{c.stdio.Stdin, c.stdio.Stdout, c.stdio.Stderr},
		Group:     true,
		DieWithUs: true,
	})
	if err != nil {
		return err
	}
	select {
	case e := <-exit:
		if e.Status == 0 {
			return nil
		}
		return failure(e, logFile, logged, said)
	case <-ctx.Done():
		_ = syscall.Kill(-pid, syscall.SIGKILL)
		<-exit
		return fmt.Errorf("%s was killed: %w", r.config.Binary, context.Cause(ctx))
	}
}

// environ is ours without what is meant for us alone: the settings that keep a
// shim small, and systemd's socket, which runc would wait on.
func environ() []string {
	return slices.DeleteFunc(os.Environ(), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return slices.Contains([]string{"GOMAXPROCS", "GOGC", "GOMEMLIMIT", "GODEBUG", "NOTIFY_SOCKET"}, name)
	})
}

// lookup finds an executable as execvp(3) does.
func lookup(name string) (string, error) {
	if strings.Contains(name, "/") {
		return filepath.Abs(name)
	}
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		p := filepath.Join(dir, name)
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 && filepath.IsAbs(p) {
			return p, nil
		}
	}
	return "", fmt.Errorf("OCI runtime %q: executable file not found in $PATH", name)
}

func memfile(name string, content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make memory file: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if len(content) > 0 {
		if _, err = f.WriteAt(content, 0); err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("fill memory file: %w", err)
		}
	}
	return f, nil
}

// maxSaid bounds what of a program's words goes into an error, in bytes.
const maxSaid = 64 << 10

// failure makes an error of an exit status: the last error in the log since the
// call began, else what was said on stderr.
func failure(e child.Exit, logFile string, from int64, said *os.File) error {
	if f, err := os.Open(logFile); err == nil && logFile != "" {
		data, _ := io.ReadAll(io.NewSectionReader(f, from, maxSaid))
		_ = f.Close()
		if msg := lastError(data); msg != "" {
			return errors.New(msg)
		}
	}
	if said != nil {
		data, _ := io.ReadAll(io.NewSectionReader(said, 0, maxSaid))
		if msg := strings.TrimSpace(string(data)); msg != "" {
			return fmt.Errorf("exit status %d: %s", e.Status, msg)
		}
	}
	return fmt.Errorf("exit status %d", e.Status)
}

// lastError finds the last line of level error or fatal in a JSON log.
func lastError(data []byte) string {
	last := ""
	for line := range bytes.Lines(data) {
		var entry struct{ Level, Msg string }
		if json.Unmarshal(line, &entry) == nil && (entry.Level == "error" || entry.Level == "fatal") {
			last = strings.TrimSpace(entry.Msg)
		}
	}
	return last
}
