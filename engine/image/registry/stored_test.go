package registry

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/engine/image/registry/registrytest"
)

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// helper puts a docker-credential-NAME script on PATH.
func helper(t *testing.T, name, script string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-"+name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func TestStoredCredentials(t *testing.T) {
	reg := registrytest.Start(t, registrytest.Options{Auth: registrytest.Token, Users: users})
	reg.Push("lib/app", "v1", layered(10))
	ref := parse(t, reg.Host+"/lib/app:v1")
	file := filepath.Join(t.TempDir(), "config.json")
	write := func(text string, mode os.FileMode) {
		if err := os.WriteFile(file, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
	}
	auths := func(password string) string {
		return fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, reg.Host, b64("ann:"+password))
	}
	h := newHarness(t, quickLimits(), filepath.Join(t.TempDir(), "none.json"), file)

	_, err := h.pull(t.Context(), ref, Options{})
	wantKind(t, err, errs.Unauthenticated)
	write(auths("wrong-password"), 0o600)
	_, err = h.pull(t.Context(), ref, Options{})
	wantKind(t, err, errs.Unauthenticated)
	if !strings.Contains(err.Error(), file) || strings.Contains(err.Error(), "wrong-password") {
		t.Errorf("the error does not name the file, or shows the password: %v", err)
	}
	write(auths("s3cret-pass"), 0o644) // rotated, no restart
	if _, err = h.pull(t.Context(), ref, Options{}); err != nil {
		t.Errorf("right password: %v", err)
	}
	if !strings.Contains(h.log.String(), "can be read by others") {
		t.Error("no warning about the file's mode")
	}
	// The caller's own credential comes first, and none of it means the stored one.
	if _, err = h.pull(t.Context(), ref, Options{Credentials: login("ann", "wrong-password")}); err == nil {
		t.Error("the caller's credential was not used")
	}
	none := func(context.Context, string) (Credential, error) { return Credential{}, nil }
	if _, err = h.pull(t.Context(), ref, Options{Credentials: none}); err != nil {
		t.Error(err)
	}
	write("{ broken", 0o600)
	_, err = h.pull(t.Context(), ref, Options{})
	wantKind(t, err, errs.Unauthenticated)
	if !strings.Contains(err.Error(), "not JSON") {
		t.Errorf("the error does not say why: %v", err)
	}
	write(fmt.Sprintf(`{"credHelpers":{%q:"none-such"}}`, reg.Host), 0o600)
	_, err = h.pull(t.Context(), ref, Options{})
	if !errs.Is(err, errs.Unauthenticated) || !strings.Contains(err.Error(), "docker-credential-none-such is not on PATH") {
		t.Errorf("a helper that is missing: %v", err)
	}
	helper(t, "good", `echo '{"Username":"ann","Secret":"s3cret-pass"}'`)
	write(fmt.Sprintf(`{"credHelpers":{%q:"good"}}`, reg.Host), 0o600)
	if _, err = h.pull(t.Context(), ref, Options{}); err != nil {
		t.Errorf("helper: %v", err)
	}
	if strings.Contains(h.log.String(), "s3cret-pass") || strings.Contains(h.log.String(), "wrong-password") {
		t.Error("the log shows a password")
	}
}

// TestBrokenHelperDoesNotStopPublicPulls: the failure shows only if it matters.
func TestBrokenHelperDoesNotStopPublicPulls(t *testing.T) {
	reg := registrytest.Start(t, registrytest.Options{Auth: registrytest.Token, Anonymous: true})
	reg.Push("lib/app", "v1", layered(10))
	file := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(file, []byte(`{"credsStore":"none-such"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	h := newHarness(t, quickLimits(), file)
	if _, err := h.pull(t.Context(), parse(t, reg.Host+"/lib/app:v1"), Options{}); err != nil {
		t.Error(err)
	}
}
