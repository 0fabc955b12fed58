// Package authfile finds the credentials that an operator keeps on the machine:
// docker config.json and containers auth.json files, and the credential helpers
// that they name. It reads files again when they changed, runs helpers under a
// time limit, and never puts what is in them into an error or a log line.
package authfile

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/berthd/berth/base/errs"
)

// Credential is what a registry host may be shown. At most one of its forms is
// used, in the order of the fields from Header on.
type Credential struct {
	Header        string // a complete Authorization value
	RegistryToken string // a bearer token for the registry itself
	IdentityToken string // a refresh token for the token server; also a Secret without Username
	Username      string // with Secret, for the token server or for Basic
	Secret        string

	Expires time.Time // zero: it does not
	Source  string    // where it is from, for messages: "config.json"; no secret
}

// Empty says whether there is nothing to show.
func (c Credential) Empty() bool {
	return c.Header == "" && c.RegistryToken == "" && c.IdentityToken == "" && c.Secret == "" && c.Username == ""
}

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
			if err != nil || !cred.Empty() {
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
