package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/berthd/berth/base/errs"
)

// runner runs plugins as programs.
type runner struct {
	dirs  []string
	limit time.Duration
}

// call is one run of a plugin.
type call struct {
	verb, network, typ string
	stdin              []byte
	id, netns, ifName  string
	args               [][2]string
	ending             bool // the namespace ends after this DEL
}

func (c call) String() string {
	return fmt.Sprintf("plugin %s of network %s: %s", c.typ, c.network, c.verb)
}

// find looks for a plugin's program.
func (r runner) find(network, typ string) (string, error) {
	for _, d := range r.dirs {
		p := filepath.Join(d, typ)
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() {
			return p, nil
		}
	}
	return "", errs.New(errs.FailedPrecondition, "plugin %s of network %s is not in %s", typ, network, strings.Join(r.dirs, ", "))
}

// do runs a plugin and returns its answer. It ends within the limit, or when ctx
// ends, with the plugin and its children killed.
func (r runner) do(ctx context.Context, c call) ([]byte, error) {
	path, err := r.find(c.network, c.typ)
	if err != nil {
		return nil, err
	}
	bound, cancel := context.WithTimeout(ctx, r.limit)
	defer cancel()
	start := time.Now()
	var out, said output
	for n := 0; ; n++ {
		out, said = output{most: maxAnswer}, output{most: maxStderr}
		err = execute(bound, path, c, r.dirs, &out, &said)
		if n < 20 && errors.Is(err, syscall.ETXTBSY) { // it is being installed, or another thread forks
			time.Sleep(50 * time.Millisecond)
			continue
		}
		break
	}
	ran := time.Since(start).Round(time.Millisecond)
	switch {
	case err == nil && out.over:
		return nil, errs.New(errs.Unavailable, "%s: its answer is longer than %d bytes", c, maxAnswer)
	case err == nil:
		return out.b.Bytes(), nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s: the caller's time was over after %s of it; it was killed, with its children%s: %w", c, ran, said.quote(), context.Cause(ctx))
	case bound.Err() != nil:
		return nil, errs.New(errs.Unavailable, "%s did not end within %s; it was killed, with its children%s", c, r.limit, said.quote())
	}
	return nil, c.failure(err, &out, &said)
}

// Bounds of what a plugin may write, in bytes.
const (
	maxAnswer = 4 << 20
	maxStderr = 16 << 10
)

func execute(ctx context.Context, path string, c call, dirs []string, out, said *output) error {
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = c.env(dirs)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(c.stdin), out, said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second // for a grandchild that left the group with our pipes
	return cmd.Run()
}

// failure turns the end of a plugin into an error with its own words (CNI
// specification 1.1, section 5, "Error").
func (c call) failure(err error, out, said *output) error {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return fmt.Errorf("%s: %w", c, err)
	}
	var e types.Error
	if json.Unmarshal(out.b.Bytes(), &e) != nil || e.Msg == "" && e.Code == 0 {
		text := strings.TrimSpace(out.b.String())
		if text != "" {
			text = fmt.Sprintf("; it answered %.500q", text)
		}
		return errs.New(errs.Unavailable, "%s: %w%s%s", c, err, text, said.quote())
	}
	return c.refusal(&e, said.quote())
}

// refusal gives a plugin's own error a kind.
func (c call) refusal(e *types.Error, said string) error {
	text := e.Msg
	if e.Details != "" {
		text += "; " + e.Details
	}
	kind := error(errs.Internal)
	switch e.Code {
	case types.ErrTryAgainLater, types.ErrPluginNotAvailable, types.ErrLimitedConnectivity:
		kind = errs.Unavailable
	case types.ErrInvalidNetworkConfig, types.ErrIncompatibleCNIVersion, types.ErrUnsupportedField, types.ErrInvalidEnvironmentVariables, types.ErrDecodingFailure:
		kind = errs.FailedPrecondition
	}
	return errs.New(kind, "%s: %s (code %d)%s", c, text, e.Code, said)
}

// output keeps the first bytes of what a plugin writes, and swallows the rest. It
// embeds nothing: a ReadFrom would let io.Copy pass by the bound.
type output struct {
	b    bytes.Buffer
	most int
	over bool
}

func (o *output) Write(p []byte) (int, error) {
	if room := o.most - o.b.Len(); len(p) > room {
		o.over = true
		_, _ = o.b.Write(p[:room])
		return len(p), nil
	}
	return o.b.Write(p)
}

func (o *output) quote() string {
	s := strings.TrimSpace(o.b.String())
	if s == "" {
		return ""
	}
	return fmt.Sprintf("; it wrote to stderr: %.2000q", s)
}
