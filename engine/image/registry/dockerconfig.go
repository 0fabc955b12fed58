package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/berthd/berth/base/errs"
)

// maxConfigFile is the largest config.json that is read, in bytes.
const maxConfigFile = 4 << 20

// dockerConfig is the part of a docker config.json or containers auth.json that
// is about credentials.
type dockerConfig struct {
	Auths       map[string]dockerAuth `json:"auths"`
	CredsStore  string                `json:"credsStore"`
	CredHelpers map[string]string     `json:"credHelpers"`
}

type dockerAuth struct {
	Auth          string `json:"auth"` // base64 of user:password
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// parseDockerConfig reads a config file. Errors never show its content.
func parseDockerConfig(data []byte) (*dockerConfig, error) {
	var c dockerConfig
	if err := json.Unmarshal(data, &c); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			return nil, errs.New(errs.FailedPrecondition, "not JSON at byte %d", syntax.Offset)
		}
		return nil, errs.New(errs.FailedPrecondition, "not a config.json: a value is of the wrong type")
	}
	return &c, nil
}

// credential decodes one entry.
func (a dockerAuth) credential() (Credential, error) {
	c := Credential{Username: a.Username, Secret: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}
	if a.Auth != "" {
		raw, err := base64.StdEncoding.DecodeString(a.Auth)
		if err != nil {
			if raw, err = base64.RawStdEncoding.DecodeString(a.Auth); err != nil {
				return Credential{}, errs.New(errs.FailedPrecondition, "auth is not base64")
			}
		}
		user, secret, ok := strings.Cut(string(raw), ":")
		if !ok || user == "" {
			return Credential{}, errs.New(errs.FailedPrecondition, "auth is not the base64 form of user:password")
		}
		c.Username, c.Secret = user, strings.TrimRight(secret, "\x00")
	}
	if c.IdentityToken != "" {
		c.Secret = ""
	}
	return c, nil
}

// hubKeys are the names under which Docker Hub's credential may be filed.
var hubKeys = []string{"https://index.docker.io/v1/", "index.docker.io", "docker.io", "registry-1.docker.io"}

func isHub(host string) bool { return slices.Contains(hubKeys[1:], host) }

// authKeys are the keys for a host and repository, most specific first: the
// containers form host/path, then the host, then URLs as Docker wrote them.
func authKeys(host, repo string) []string {
	var out []string
	names := []string{host}
	if isHub(host) {
		names = hubKeys
	}
	for _, n := range names {
		if strings.Contains(n, "://") {
			continue
		}
		for p := repo; p != ""; {
			out = append(out, n+"/"+p)
			i := strings.LastIndexByte(p, '/')
			p = p[:max(i, 0)]
		}
	}
	for _, n := range names {
		out = append(out, n)
		if !strings.Contains(n, "://") {
			out = append(out, "https://"+n, "https://"+n+"/", "https://"+n+"/v1/", "https://"+n+"/v2/", "http://"+n)
		}
	}
	return out
}

// find picks the credential, or the helper that would know it ("" if none).
func (c *dockerConfig) find(host, repo string) (cred Credential, helper, server string, err error) {
	keys := authKeys(host, repo)
	for _, k := range keys {
		if h := c.CredHelpers[k]; h != "" {
			return Credential{}, h, k, nil
		}
	}
	for _, k := range keys {
		if a, ok := c.Auths[k]; ok {
			cred, err = a.credential()
			if err != nil || !cred.empty() {
				return cred, "", "", err
			}
		}
	}
	if c.CredsStore != "" {
		server = host
		if isHub(host) {
			server = hubKeys[0]
		}
		return Credential{}, c.CredsStore, server, nil
	}
	return Credential{}, "", "", nil
}

// storedCredentials reads the operator's credential files, again when they changed.
type storedCredentials struct {
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

func newStoredCredentials(paths []string, log *slog.Logger) *storedCredentials {
	s := &storedCredentials{log: log, problems: map[string]string{}}
	for _, p := range paths {
		s.files = append(s.files, &credentialFile{path: p})
	}
	return s
}

// lookup finds a credential. What goes wrong is logged and kept for the hint of a
// later refusal; the request then goes on without a credential, never with one
// for another host.
func (s *storedCredentials) lookup(ctx context.Context, host, repo string) Credential {
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
		if !cred.empty() {
			problem = ""
			cred.Source = f.path
			return cred
		}
	}
	return Credential{}
}

func (s *storedCredentials) setProblem(host, problem string) {
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

func (s *storedCredentials) problem(host string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.problems[host]
}

// read returns the parsed file, nil if there is none.
func (s *storedCredentials) read(f *credentialFile) (*dockerConfig, error) {
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
