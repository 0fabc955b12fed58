// Package credential keeps and finds registry credentials where Docker's command
// line keeps them: $DOCKER_CONFIG/config.json, else ~/.docker/config.json, and the
// helper programs that it names. Other programs write that file too, so everything
// in it that is not ours to change is kept as it is.
package credential

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/berthd/berth/base/errs"
)

// hub is the key under which Docker keeps what docker.io wants.
const hub = "https://index.docker.io/v1/"

// tokenUser is the user name of an identity token in a helper's answer.
const tokenUser = "<token>"

// Credential is a user and a secret; Token says that the secret is an identity
// token.
type Credential struct {
	Username, Secret string
	Token            bool
}

// File is one configuration file.
type File struct{ Path string }

// Default is the user's file.
func Default() (File, error) {
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		return File{filepath.Join(dir, "config.json")}, nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return File{}, fmt.Errorf("find your home directory: %w; set DOCKER_CONFIG", err)
	}
	return File{filepath.Join(home, ".docker", "config.json")}, nil
}

// config is the part of the file that is read here; the rest is kept.
type config struct {
	all     map[string]json.RawMessage
	auths   map[string]json.RawMessage
	store   string
	helpers map[string]string
}

type auth struct {
	Auth          string `json:"auth,omitempty"`
	Username      string `json:"username,omitempty"`
	Password      string `json:"password,omitempty"`
	IdentityToken string `json:"identitytoken,omitempty"`
}

func (f File) read() (config, error) {
	c := config{all: map[string]json.RawMessage{}, auths: map[string]json.RawMessage{}, helpers: map[string]string{}}
	data, err := os.ReadFile(f.Path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(bytes.TrimSpace(data)) == 0 {
		return c, nil
	}
	if err != nil {
		return c, fmt.Errorf("read credentials: %w", err)
	}
	err = json.Unmarshal(data, &c.all)
	for key, to := range map[string]any{"auths": &c.auths, "credsStore": &c.store, "credHelpers": &c.helpers} {
		if raw := c.all[key]; err == nil && raw != nil {
			err = json.Unmarshal(raw, to)
		}
	}
	if err != nil {
		return c, fmt.Errorf("read credentials in %s: %w", f.Path, err)
	}
	if c.auths == nil {
		c.auths = map[string]json.RawMessage{}
	}
	return c, nil
}

// keys are the names under which a host's credential may be kept, best first.
func keys(host string) []string {
	if host == "docker.io" || host == "registry-1.docker.io" || host == "index.docker.io" {
		return []string{hub, "index.docker.io", "docker.io", "registry-1.docker.io"}
	}
	return []string{host, "https://" + host, "http://" + host, "https://" + host + "/v1/", "https://" + host + "/v2/", "https://" + host + "/"}
}

// Empty reports whether nobody has logged in anywhere and no helper is named.
func (f File) Empty() bool {
	c, err := f.read()
	return err == nil && len(c.auths) == 0 && c.store == "" && len(c.helpers) == 0
}

// Get finds the credential for a host; the zero one means that there is none.
func (f File) Get(ctx context.Context, host string) (Credential, error) {
	c, err := f.read()
	if err != nil {
		return Credential{}, err
	}
	if h := c.helper(host); h != "" {
		for _, k := range keys(host) {
			if cred, err := ask(ctx, h, k); err != nil || cred.Secret != "" {
				return cred, err
			}
		}
	}
	for _, k := range keys(host) {
		raw := c.auths[k]
		if raw == nil {
			continue
		}
		var a auth
		if err := json.Unmarshal(raw, &a); err != nil {
			return Credential{}, fmt.Errorf("read credentials of %s in %s: %w", k, f.Path, err)
		}
		cred, err := a.credential()
		if err != nil {
			return cred, fmt.Errorf("read credentials of %s in %s: %w", k, f.Path, err)
		}
		if cred.Secret != "" {
			return cred, nil
		}
	}
	return Credential{}, nil
}

func (a auth) credential() (Credential, error) {
	if a.IdentityToken != "" {
		return Credential{Secret: a.IdentityToken, Token: true}, nil
	}
	if a.Auth == "" {
		return Credential{Username: a.Username, Secret: a.Password}, nil
	}
	b, err := base64.StdEncoding.DecodeString(a.Auth)
	if err != nil {
		return Credential{}, err
	}
	user, secret, _ := strings.Cut(strings.TrimRight(string(b), "\x00"), ":")
	return Credential{Username: user, Secret: secret}, nil
}

func (c config) helper(host string) string {
	for _, k := range keys(host) {
		if h := c.helpers[k]; h != "" {
			return h
		}
	}
	return c.store
}

// Put keeps a credential: with the helper that the file names, else in the file.
func (f File) Put(ctx context.Context, host string, cred Credential) error {
	c, err := f.read()
	if err != nil {
		return err
	}
	key := keys(host)[0]
	if h := c.helper(host); h != "" {
		user := cred.Username
		if cred.Token {
			user = tokenUser
		}
		in, err := json.Marshal(answer{ServerURL: key, Username: user, Secret: cred.Secret})
		if err != nil {
			return err
		}
		if _, err := run(ctx, h, "store", in); err != nil {
			return err
		}
		c.auths[key] = json.RawMessage("{}")
		return f.write(c)
	}
	a := auth{Auth: base64.StdEncoding.EncodeToString([]byte(cred.Username + ":" + cred.Secret))}
	if cred.Token {
		a = auth{IdentityToken: cred.Secret}
	}
	if c.auths[key], err = json.Marshal(a); err != nil {
		return err
	}
	return f.write(c)
}

// Remove forgets a host's credential and says whether there was one.
func (f File) Remove(ctx context.Context, host string) (bool, error) {
	c, err := f.read()
	if err != nil {
		return false, err
	}
	there := false
	for _, k := range keys(host) {
		if c.auths[k] != nil {
			there = true
			delete(c.auths, k)
		}
	}
	if h := c.helper(host); h != "" {
		for _, k := range keys(host) {
			if _, err := run(ctx, h, "erase", []byte(k)); err == nil {
				there = true
			}
		}
	}
	if !there {
		return false, nil
	}
	return true, f.write(c)
}

// write replaces the file at once, so that no reader sees half of it.
func (f File) write(c config) error {
	raw, err := json.Marshal(c.auths)
	if err != nil {
		return err
	}
	c.all["auths"] = raw
	data, err := json.MarshalIndent(c.all, "", "\t")
	if err != nil {
		return err
	}
	path := f.Path
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write credentials: %w", err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".config.json-")
	if err != nil {
		return fmt.Errorf("write credentials: %w", err)
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	_, err = tmp.Write(append(data, '\n'))
	if err = errors.Join(err, tmp.Close()); err != nil {
		return fmt.Errorf("write credentials: %w", err)
	}
	return os.Rename(tmp.Name(), path)
}

// answer is what helpers take and give.
type answer struct{ ServerURL, Username, Secret string }

func ask(ctx context.Context, helper, key string) (Credential, error) {
	out, err := run(ctx, helper, "get", []byte(key))
	if errs.Is(err, errs.NotFound) {
		return Credential{}, nil
	}
	if err != nil {
		return Credential{}, err
	}
	var a answer
	if err := json.Unmarshal(out, &a); err != nil {
		return Credential{}, fmt.Errorf("docker-credential-%s get: its answer: %w", helper, err)
	}
	return Credential{Username: a.Username, Secret: a.Secret, Token: a.Username == tokenUser}, nil
}

// run calls a helper program (docker-credential-helpers' protocol).
func run(ctx context.Context, helper, verb string, in []byte) ([]byte, error) {
	if strings.ContainsAny(helper, "/\x00") {
		return nil, errs.New(errs.InvalidArgument, "credential helper %q: its name must not be a path", helper)
	}
	cmd := exec.CommandContext(ctx, "docker-credential-"+helper, verb)
	cmd.Stdin = bytes.NewReader(in)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err == nil {
		return out, nil
	}
	said := strings.TrimSpace(string(out) + stderr.String())
	if strings.Contains(said, "credentials not found") {
		return nil, errs.New(errs.NotFound, "docker-credential-%s %s: %s", helper, verb, said)
	}
	return nil, fmt.Errorf("docker-credential-%s %s: %w: %s", helper, verb, err, said)
}
