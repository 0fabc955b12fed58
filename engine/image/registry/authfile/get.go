package authfile

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/berthd/berth/base/errs"
)

const (
	helperTime   = 15 * time.Second
	helperOutput = 64 << 10 // bytes
)

var helperName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// askHelper runs docker-credential-NAME get with the server's name on its input
// (github.com/docker/docker-credential-helpers, "Development"). What it prints is
// never part of an error: it may hold secrets.
func askHelper(ctx context.Context, name, server string) (Credential, error) {
	if !helperName.MatchString(name) {
		return Credential{}, errs.New(errs.InvalidArgument, "credential helper %.80q: not a name", name)
	}
	program := "docker-credential-" + name
	path, err := exec.LookPath(program) // refuses what is found relative to "."
	if err != nil || !filepath.IsAbs(path) {
		return Credential{}, errs.New(errs.FailedPrecondition, "credential helper %s is not on PATH", program)
	}
	ctx, cancel := context.WithTimeout(ctx, helperTime)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, path, "get")
	cmd.Stdin = strings.NewReader(server)
	cmd.Stdout = &cappedWriter{buf: &out, left: helperOutput}
	cmd.WaitDelay = time.Second // a child of the helper may keep the pipe open
	err = cmd.Run()
	switch {
	case ctx.Err() != nil:
		return Credential{}, errs.New(errs.Unavailable, "credential helper %s: no answer in %s", program, helperTime)
	case err != nil && strings.Contains(out.String(), "credentials not found"):
		return Credential{}, nil
	case err != nil:
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return Credential{}, errs.New(errs.Unavailable, "credential helper %s: %s", program, exit.ProcessState)
		}
		return Credential{}, errs.New(errs.Unavailable, "credential helper %s: %w", program, err)
	}
	var answer struct{ Username, Secret string }
	if json.Unmarshal(out.Bytes(), &answer) != nil {
		return Credential{}, errs.New(errs.Unavailable, "credential helper %s: its answer is not JSON", program)
	}
	if answer.Username == "<token>" {
		return Credential{IdentityToken: answer.Secret}, nil
	}
	return Credential{Username: answer.Username, Secret: answer.Secret}, nil
}

// cappedWriter keeps the first bytes and swallows the rest.
type cappedWriter struct {
	buf  *bytes.Buffer
	left int
}

func (w *cappedWriter) Write(p []byte) (int, error) {
	n := min(len(p), w.left)
	w.buf.Write(p[:n])
	w.left -= n
	return len(p), nil
}
