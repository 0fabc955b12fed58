package daemon

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/berthd/berth/daemon/config"
)

// registries turns what old versions of the configuration say of registries into what
// the registry client reads: a folder of hosts.toml files and a file of credentials,
// both below state and made anew at each start and reload. dirs and files are the
// complete lists.
func registries(cfg config.Config) (dirs string, files []string, err error) {
	r := cfg.Plugins.Images.Registry
	dirs, files = cfg.HostsDirs(), cfg.Berth.CredentialFiles
	old := filepath.Join(cfg.State, "registry")
	if err := os.RemoveAll(old); err != nil {
		return "", nil, err
	}
	if len(r.Mirrors)+len(r.Configs)+len(r.Auths) == 0 {
		return dirs, files, nil
	}
	hosts := filepath.Join(old, "certs.d")
	if err := writeHosts(hosts, r); err != nil {
		return "", nil, fmt.Errorf("registry.mirrors and registry.configs: %w", err)
	}
	auth := filepath.Join(old, "auth.json")
	if err := writeAuth(auth, r); err != nil {
		return "", nil, fmt.Errorf("registry.configs and registry.auths: %w", err)
	}
	return hosts + ":" + dirs, append([]string{auth}, files...), nil
}

// hostFile is the part of hosts.toml that old configurations can say.
type hostFile struct {
	Server     string              `toml:"server,omitempty"`
	SkipVerify bool                `toml:"skip_verify,omitempty"`
	CA         string              `toml:"ca,omitempty"`
	Client     [][]string          `toml:"client,omitempty"`
	Caps       []string            `toml:"capabilities,omitempty"`
	Override   bool                `toml:"override_path,omitempty"`
	Host       map[string]hostFile `toml:"host,omitempty"`
}

func trustOf(t config.RegistryTLS) hostFile {
	f := hostFile{SkipVerify: t.Insecure, CA: t.CA}
	if t.Cert != "" {
		f.Client = [][]string{{t.Cert, t.Key}}
	}
	return f
}

func writeHosts(dir string, r config.Registry) error {
	names := map[string]bool{}
	for n := range r.Mirrors {
		names[n] = true
	}
	for n, c := range r.Configs {
		if c.TLS != (config.RegistryTLS{}) {
			names[n] = true
		}
	}
	for name := range names {
		f := trustOf(r.Configs[name].TLS)
		var text []byte
		head, err := toml.Marshal(f)
		if err != nil {
			return err
		}
		text = append(text, head...)
		for _, e := range r.Mirrors[name].Endpoint { // one by one: they are asked in the order of the file
			u, err := url.Parse(e)
			if err != nil || u.Host == "" {
				return fmt.Errorf("endpoint %q of %s is not a URL", e, name)
			}
			h := trustOf(r.Configs[u.Host].TLS)
			h.Caps = []string{"pull", "resolve"}
			h.Override = strings.Trim(u.Path, "/") != "" // the path is the API's root, and not only a prefix to it
			t, err := toml.Marshal(hostFile{Host: map[string]hostFile{e: h}})
			if err != nil {
				return err
			}
			text = append(text, strings.TrimPrefix(string(t), "[host]\n")...)
		}
		at := filepath.Join(dir, hostDir(name))
		if err := os.MkdirAll(at, 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(at, "hosts.toml"), text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// hostDir is a host's folder (containerd's hosts.toml: a port is between underscores).
func hostDir(name string) string {
	if name == "*" {
		return "_default"
	}
	if host, port, ok := strings.Cut(filepath.Base(name), ":"); ok {
		return host + "_" + port + "_"
	}
	return filepath.Base(name)
}

// writeAuth writes credentials as docker's config.json.
func writeAuth(file string, r config.Registry) error {
	type entry struct {
		Auth  string `json:"auth,omitempty"`
		Token string `json:"identitytoken,omitempty"`
	}
	auths := map[string]entry{}
	add := func(host string, a config.RegistryAuth) error {
		switch {
		case a == (config.RegistryAuth{}):
			return nil
		case a.Auth != "" && a.Username != "":
			return errors.New(host + ": give either auth or username and password")
		case a.Username != "":
			a.Auth = base64.StdEncoding.EncodeToString([]byte(a.Username + ":" + a.Password))
		}
		if host == "docker.io" {
			host = "https://index.docker.io/v1/"
		}
		auths[host] = entry{a.Auth, a.Token}
		return nil
	}
	for host, a := range r.Auths {
		if u, err := url.Parse(host); err == nil && u.Host != "" {
			host = u.Host
		}
		if err := add(host, a); err != nil {
			return err
		}
	}
	for host, c := range r.Configs {
		if err := add(host, c.Auth); err != nil {
			return err
		}
	}
	data, err := json.Marshal(map[string]any{"auths": auths})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	return os.WriteFile(file, data, 0o600)
}
