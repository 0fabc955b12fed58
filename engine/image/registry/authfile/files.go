package authfile

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"

	"github.com/berthd/berth/base/errs"
)

// Files reads the operator's credential files, again when they changed.
type Files struct {
	log *slog.Logger

	mu       sync.Mutex
	files    []*credentialFile
	problems map[string]string // by host: why a stored credential could not be had
}

type credentialFile struct {
	path   string
	stamp  string
	config *dockerConfig
	err    error
}

// New makes Files of paths, which are asked in order. It reads nothing yet.
func New(paths []string, log *slog.Logger) *Files {
	s := &Files{log: log, problems: map[string]string{}}
	for _, p := range paths {
		s.files = append(s.files, &credentialFile{path: p})
	}
	return s
}

// Lookup finds a credential. What goes wrong is logged and kept for the hint of a
// later refusal; the request then goes on without a credential, never with one
// for another host.
func (s *Files) Lookup(ctx context.Context, host, repo string) Credential {
	problem := ""
	defer func() { s.setProblem(host, problem) }()
	for _, f := range s.files {
		c, err := s.read(f)
		if err != nil {
			problem = err.Error()
			continue
		}
		if c == nil {
			continue
		}
		cred, helper, server, err := c.find(host, repo)
		if err == nil && helper != "" {
			cred, err = askHelper(ctx, helper, server)
		}
		if err != nil {
			problem = fmt.Sprintf("%s: %v", f.path, err)
			s.log.Warn("stored credential", "file", f.path, "host", host, "problem", err)
			continue
		}
		if !cred.Empty() {
			problem = ""
			cred.Source = f.path
			return cred
		}
	}
	return Credential{}
}

func (s *Files) setProblem(host, problem string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.problems) > 1024 {
		clear(s.problems)
	}
	if problem == "" {
		delete(s.problems, host)
	} else {
		s.problems[host] = problem
	}
}

// Problem says why the last Lookup for a host found nothing, "" if nothing was wrong.
func (s *Files) Problem(host string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.problems[host]
}

// read returns the parsed file, nil if there is none.
func (s *Files) read(f *credentialFile) (*dockerConfig, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fi, err := os.Stat(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		f.stamp = ""
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("credential file: %w", err)
	}
	stamp := fmt.Sprintf("%d.%d.%o", fi.ModTime().UnixNano(), fi.Size(), fi.Mode())
	if stamp == f.stamp {
		return f.config, f.err
	}
	f.stamp, f.config, f.err = stamp, nil, nil
	if fi.Mode().Perm()&0o077 != 0 {
		s.log.Warn("credential file can be read by others than its owner", "file", f.path, "mode", fi.Mode().Perm().String())
	}
	if !fi.Mode().IsRegular() || fi.Size() > maxConfigFile {
		f.err = errs.New(errs.FailedPrecondition, "%s is not a plain file of at most %d bytes", f.path, maxConfigFile)
		return nil, f.err
	}
	data, err := os.ReadFile(f.path)
	if err == nil {
		f.config, err = parseDockerConfig(data)
	}
	if err != nil {
		f.err = fmt.Errorf("read credential file %s: %w", f.path, err)
		s.log.Warn("credential file", "file", f.path, "problem", err)
	}
	return f.config, f.err
}
