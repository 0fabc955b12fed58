package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/base/errs"
)

// Verifiers are programs that may refuse an image after it was resolved and
// before anything of it is fetched (containerd's bindir verifier). Each gets the
// descriptor on stdin and says yes by exit status 0; all must. What a refusing
// one prints is the reason.
type Verifiers struct {
	Dir   string        // every executable in it is asked, in the order of names
	Most  int           // at most so many; 0: none, negative: all
	Limit time.Duration // for each
}

// maxReason is how much of a verifier's output is kept, in bytes.
const maxReason = 32 << 10

// Check asks all verifiers. A directory that is not there has none.
func (v Verifiers) Check(ctx context.Context, name string, d ocispec.Descriptor) error {
	if v.Dir == "" || v.Most == 0 {
		return nil
	}
	entries, err := os.ReadDir(v.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("image verifiers: %w", err)
	}
	if v.Most > 0 && len(entries) > v.Most {
		entries = entries[:v.Most]
	}
	in, err := json.Marshal(d)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := v.ask(ctx, filepath.Join(v.Dir, e.Name()), name, d, in); err != nil {
			return err
		}
	}
	return nil
}

func (v Verifiers) ask(ctx context.Context, program, name string, d ocispec.Descriptor, in []byte) error {
	ctx, cancel := context.WithTimeout(ctx, v.Limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "-name", name, "-digest", d.Digest.String(), "-stdin-media-type", ocispec.MediaTypeDescriptor)
	cmd.Stdin = bytes.NewReader(in)
	out := &limited{most: maxReason}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	reason := strings.TrimSpace(out.String())
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return errs.New(errs.PermissionDenied, "image verifier %s did not answer within %s", filepath.Base(program), v.Limit)
	case errors.As(err, &exit):
		return errs.New(errs.PermissionDenied, "image verifier %s refuses %s: %s (exit status %d)", filepath.Base(program), name, reason, exit.ExitCode())
	}
	return errs.New(errs.PermissionDenied, "image verifier %s cannot be run: %v", filepath.Base(program), err)
}

// limited keeps the first bytes and drops the rest.
type limited struct {
	bytes.Buffer
	most int
}

func (l *limited) Write(p []byte) (int, error) {
	l.Buffer.Write(p[:min(len(p), l.most-l.Len())])
	return len(p), nil
}
