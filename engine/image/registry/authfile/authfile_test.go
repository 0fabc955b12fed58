package authfile

import (
	"context"
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/base/errs"
)

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

func TestDockerConfig(t *testing.T) {
	hub := "registry-1.docker.io"
	for name, tc := range map[string]struct {
		config, host, repo string
		want               Credential
		helper, server     string
		err                bool
	}{
		"host":           {config: `{"auths":{"r.example":{"auth":"` + b64("u:p:q") + `"}}}`, host: "r.example", want: Credential{Username: "u", Secret: "p:q"}},
		"unpadded":       {config: `{"auths":{"r.example":{"auth":"` + strings.TrimRight(b64("u:pppp"), "=") + `"}}}`, host: "r.example", want: Credential{Username: "u", Secret: "pppp"}},
		"url":            {config: `{"auths":{"https://r.example/v1/":{"username":"u","password":"p"}}}`, host: "r.example", want: Credential{Username: "u", Secret: "p"}},
		"hub":            {config: `{"auths":{"https://index.docker.io/v1/":{"auth":"` + b64("u:p") + `"}}}`, host: hub, want: Credential{Username: "u", Secret: "p"}},
		"hub, short":     {config: `{"auths":{"docker.io":{"auth":"` + b64("u:p") + `"}}}`, host: hub, want: Credential{Username: "u", Secret: "p"}},
		"other host":     {config: `{"auths":{"https://index.docker.io/v1/":{"auth":"` + b64("u:p") + `"}}}`, host: "r.example"},
		"other port":     {config: `{"auths":{"r.example:5000":{"auth":"` + b64("u:p") + `"}}}`, host: "r.example"},
		"longer name":    {config: `{"auths":{"r.example.org":{"auth":"` + b64("u:p") + `"}}}`, host: "r.example"},
		"path":           {config: `{"auths":{"r.example":{"auth":"` + b64("u:p") + `"},"r.example/team":{"auth":"` + b64("t:t") + `"}}}`, host: "r.example", repo: "team/app", want: Credential{Username: "t", Secret: "t"}},
		"other path":     {config: `{"auths":{"r.example/team":{"auth":"` + b64("t:t") + `"}}}`, host: "r.example", repo: "teamwork/app"},
		"identity token": {config: `{"auths":{"r.example":{"auth":"` + b64("u:p") + `","identitytoken":"it"}}}`, host: "r.example", want: Credential{Username: "u", IdentityToken: "it"}},
		"registry token": {config: `{"auths":{"r.example":{"registrytoken":"rt"}}}`, host: "r.example", want: Credential{RegistryToken: "rt"}},
		"empty entry":    {config: `{"auths":{"r.example":{}},"credsStore":"pass"}`, host: "r.example", helper: "pass", server: "r.example"},
		"store, hub":     {config: `{"credsStore":"pass"}`, host: hub, helper: "pass", server: "https://index.docker.io/v1/"},
		"helper":         {config: `{"credHelpers":{"r.example":"ecr"},"credsStore":"pass"}`, host: "r.example", helper: "ecr", server: "r.example"},
		"helper before":  {config: `{"credHelpers":{"r.example":"ecr"},"auths":{"r.example":{"auth":"` + b64("u:p") + `"}}}`, host: "r.example", helper: "ecr", server: "r.example"},
		"not base64":     {config: `{"auths":{"r.example":{"auth":"%%%"}}}`, host: "r.example", err: true},
		"no colon":       {config: `{"auths":{"r.example":{"auth":"` + b64("secretpw") + `"}}}`, host: "r.example", err: true},
		"trailing NUL":   {config: `{"auths":{"r.example":{"auth":"` + b64("u:p\x00") + `"}}}`, host: "r.example", want: Credential{Username: "u", Secret: "p"}},
		"nothing":        {config: `{}`, host: "r.example"},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := parseDockerConfig([]byte(tc.config))
			if err != nil {
				t.Fatal(err)
			}
			cred, helper, server, err := c.find(tc.host, tc.repo)
			if (err != nil) != tc.err || cred != tc.want || helper != tc.helper || server != tc.server {
				t.Errorf("%+v, helper %q for %q, %v", cred, helper, server, err)
			}
		})
	}
	for _, bad := range []string{"", "[]", `{"auths":3}`, `{"auths":{"x":{"auth":{"secretpw":1}}}}`, "{secretpw"} {
		_, err := parseDockerConfig([]byte(bad))
		if !errs.Is(err, errs.FailedPrecondition) || strings.Contains(err.Error(), "secretpw") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// helper puts a docker-credential-NAME script on PATH.
func helper(t *testing.T, name, script string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-"+name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func TestCredentialHelper(t *testing.T) {
	for name, tc := range map[string]struct {
		script string
		want   Credential
		err    bool
	}{
		"user":        {script: `read s; printf '{"ServerURL":"%s","Username":"u","Secret":"for-%s"}' "$s" "$s"`, want: Credential{Username: "u", Secret: "for-r.example"}},
		"token":       {script: `echo '{"Username":"<token>","Secret":"t"}'`, want: Credential{IdentityToken: "t"}},
		"not there":   {script: `echo "credentials not found in native keychain"; exit 1`},
		"fails":       {script: `echo "secretpw"; echo "secretpw" >&2; exit 3`, err: true},
		"not json":    {script: `echo secretpw`, err: true},
		"endless":     {script: `while :; do echo '{"Username":"secretpw"'; done & p=$!; sleep 0.2; kill $p`, err: true},
		"wrong verb?": {script: `[ "$1" = get ] && echo '{"Username":"u","Secret":"s"}'`, want: Credential{Username: "u", Secret: "s"}},
	} {
		t.Run(name, func(t *testing.T) {
			helper(t, "test", tc.script)
			got, err := askHelper(t.Context(), "test", "r.example")
			if got != tc.want || (err != nil) != tc.err {
				t.Errorf("%+v, %v", got, err)
			}
			if err != nil && strings.Contains(err.Error(), "secretpw") {
				t.Errorf("the error shows what the helper said: %v", err)
			}
		})
	}
	for _, bad := range []string{"", "../x", "/bin/sh", "a b", "-x", "none-such", strings.Repeat("x", 100)} {
		if _, err := askHelper(t.Context(), bad, "r.example"); err == nil {
			t.Errorf("helper %q ran", bad)
		}
	}
	helper(t, "test", "sleep 30")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := askHelper(ctx, "test", "r.example"); err == nil || time.Since(began) > 5*time.Second {
		t.Errorf("a helper that hangs: %v after %s", err, time.Since(began))
	}
}

func FuzzDockerConfig(f *testing.F) {
	for _, s := range []string{
		`{"auths":{"r.example":{"auth":"dTpw"}}}`, `{"credHelpers":{"r.example":"x"},"credsStore":"y"}`, `{"auths":{"r.example/a":{"identitytoken":"t"}}}`, `{"auths":null}`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := parseDockerConfig([]byte(s))
		if err != nil {
			return
		}
		for _, host := range []string{"r.example", "registry-1.docker.io", "r.example:5000"} {
			cred, _, _, err := c.find(host, "a/b/c")
			if err == nil && cred.Secret != "" && cred.IdentityToken != "" {
				t.Fatalf("%+v has two secrets", cred)
			}
		}
	})
}
