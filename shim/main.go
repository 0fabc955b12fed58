package shim

import (
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/host/child"
	"github.com/berthd/berth/host/runc"
	"github.com/berthd/berth/host/runsc"
	"github.com/berthd/berth/shim/wire"
)

// Version and Revision name the build; the linker sets them.
var (
	Version  = "dev"
	Revision = ""
)

// maxInput bounds what is read from stdin, in bytes.
const maxInput = 10 << 20

// flags are those of every shim (containerd's runtime v2 convention), and a few of
// `serve`.
type flags struct {
	namespace, id, bundle  string
	address, publishBinary string
	debug, version, info   bool
	socketFD               int
	eventAddress           string
	action                 string
}

func parseFlags(args []string) (*flags, error) {
	f := &flags{}
	set := flag.NewFlagSet(filepath.Base(args[0]), flag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.StringVar(&f.namespace, "namespace", "", "")
	set.StringVar(&f.id, "id", "", "")
	set.StringVar(&f.bundle, "bundle", "", "")
	set.StringVar(&f.address, "address", "", "")
	set.StringVar(&f.publishBinary, "publish-binary", "", "")
	set.BoolVar(&f.debug, "debug", false, "")
	set.BoolVar(&f.version, "v", false, "")
	set.BoolVar(&f.version, "version", false, "")
	set.BoolVar(&f.info, "info", false, "")
	set.IntVar(&f.socketFD, "socket-fd", 3, "")
	set.StringVar(&f.eventAddress, "event-address", os.Getenv("TTRPC_ADDRESS"), "")
	rest := args[1:]
	// The action stands last in a daemon's command line, and first in ours.
	if len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
		f.action, rest = rest[0], rest[1:]
	}
	if err := set.Parse(rest); err != nil {
		return nil, err
	}
	if f.action == "" {
		f.action = set.Arg(0)
	}
	return f, nil
}

// Main runs a shim's command line and returns the exit code. Its answer is all it
// writes to stdout; a daemon that starts a shim reads stderr as part of it, so
// nothing is written there unless the command fails.
func Main(args []string) int {
	if len(args) == 3 && args[1] == actionLogger {
		return exitCode(args, launchLogger(args[2]))
	}
	if len(args) == 3 && args[1] == actionServes {
		return exitCode(args, serveLogger(args[2]))
	}
	f, err := parseFlags(args)
	if err == nil {
		err = f.run(filepath.Base(args[0]))
	}
	return exitCode(args, err)
}

func exitCode(args []string, err error) int {
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", filepath.Base(args[0]), err)
		return 1
	}
	return 0
}

func (f *flags) run(program string) error {
	switch {
	case f.version:
		fmt.Printf("%s:\n  Version:  %s\n  Revision: %s\n  Go version: %s\n", program, Version, Revision, runtime.Version())
		return nil
	case f.info:
		return info(program)
	case f.action == "hold":
		hold()
		return nil
	case f.action == "hold-input":
		_, err := io.Copy(io.Discard, os.Stdin)
		return err
	case f.namespace == "" || f.id == "":
		return errs.New(errs.InvalidArgument, "-namespace and -id are needed")
	}
	for what, id := range map[string]string{"namespace": f.namespace, "container id": f.id} {
		if err := checkID(what, id); err != nil {
			return err
		}
	}
	switch f.action {
	case "start":
		return f.start()
	case "delete":
		return f.delete()
	case "serve":
		return f.serve()
	}
	return errs.New(errs.InvalidArgument, "action %q is not known: start, delete or serve", f.action)
}

// runtimeName is the runtime type that a program serves by its name.
func runtimeName(program string) string {
	rest, ok := strings.CutPrefix(program, "containerd-shim-")
	i := strings.LastIndexByte(rest, '-')
	if !ok || i <= 0 {
		return "io.containerd.runc.v2"
	}
	return "io.containerd." + rest[:i] + "." + rest[i+1:]
}

// newRuntime is the one place that knows which runtime there is. Without a root in
// the options the runtime keeps its state in the bundle: there it cannot collide
// with that of another daemon, and it goes when the bundle goes.
func newRuntime(s settings, bundle, namespace string, r *child.Reaper) Runtime {
	c := runc.Config{Binary: s.Runtime, SystemdCgroup: s.SystemdCgroup, NoPivotRoot: s.NoPivotRoot, NoNewKeyring: s.NoNewKeyring}
	if s.Root != "" {
		c.Root = filepath.Join(s.Root, namespace)
	}
	if runsc.Is(s.Runtime) {
		return runsc.New(c, bundle, r)
	}
	if c.Root == "" {
		c.Root = filepath.Join(bundle, "runtime-state")
	}
	return runc.New(c, r)
}

// info prints what the runtime can do. The runtime's options may come on stdin.
func info(program string) error {
	in, err := readInput()
	if err != nil {
		return err
	}
	var a wire.Any
	if err := a.Decode(in); err != nil {
		return errs.New(errs.InvalidArgument, "read runtime options: %v", err)
	}
	options, err := readOptions(a)
	if err != nil {
		return err
	}
	reaper, stop := runReaper()
	defer stop()
	ctx, cancel := withTimeout(infoLimit)
	defer cancel()
	answer := wire.RuntimeInfo{Name: runtimeName(program), Version: Version, Revision: Revision, Options: a}
	rt := newRuntime(settings{Runtime: options.BinaryName}, os.TempDir(), "", reaper)
	features, err := rt.Features(ctx)
	if err != nil && !runtimeExists(err) {
		return err
	}
	if err == nil {
		answer.Features = wire.Any{TypeURL: wire.FeaturesType, Value: features}
	}
	_, err = os.Stdout.Write(answer.Append(nil))
	return err
}

// runtimeExists tells a runtime that has no features verb from one that is missing.
func runtimeExists(err error) bool {
	return !strings.Contains(err.Error(), "executable file not found") && !strings.Contains(err.Error(), "no such file")
}

func readInput() ([]byte, error) {
	// A terminal or a closed stdin gives no input; a daemon gives a pipe or nothing.
	if st, err := os.Stdin.Stat(); err != nil || st.Mode()&os.ModeCharDevice != 0 {
		return nil, nil
	}
	data, err := io.ReadAll(io.LimitReader(os.Stdin, maxInput))
	if err != nil {
		return nil, fmt.Errorf("read stdin: %w", err)
	}
	return data, nil
}
