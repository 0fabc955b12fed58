package credential

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFileKeepsWhatItDoesNotKnow(t *testing.T) {
	f := File{filepath.Join(t.TempDir(), "d", "config.json")}
	ctx := t.Context()
	if c, err := f.Get(ctx, "example.com"); err != nil || c != (Credential{}) {
		t.Fatalf("no file: %v, %v", c, err)
	}
	if err := os.MkdirAll(filepath.Dir(f.Path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(f.Path, []byte(`{"psFormat":"x","auths":{"other:5000":{"auth":"YTpi","email":"e"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	want := Credential{Username: "me", Secret: "pass:word"}
	if err := f.Put(ctx, "docker.io", want); err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]Credential{"docker.io": want, "registry-1.docker.io": want, "other:5000": {Username: "a", Secret: "b"}, "none": {}} {
		if got, err := f.Get(ctx, host); err != nil || got != want {
			t.Errorf("Get(%s) = %v, %v; want %v", host, got, err, want)
		}
	}
	data, err := os.ReadFile(f.Path)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{`"psFormat": "x"`, `"email": "e"`, hub} {
		if !strings.Contains(string(data), part) {
			t.Errorf("the file has lost %s:\n%s", part, data)
		}
	}
	if st, _ := os.Stat(f.Path); st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v: others can read it", st.Mode())
	}
	if there, err := f.Remove(ctx, "docker.io"); !there || err != nil {
		t.Errorf("Remove: %v, %v", there, err)
	}
	if there, err := f.Remove(ctx, "docker.io"); there || err != nil {
		t.Errorf("Remove again: %v, %v", there, err)
	}
}

func TestHelper(t *testing.T) {
	dir := t.TempDir()
	script := `#!/bin/sh
read -r in
case $1 in
get) [ "$in" = reg.example ] || { echo "credentials not found in native keychain"; exit 1; }
     printf '{"ServerURL":"reg.example","Username":"<token>","Secret":"tok"}' ;;
esac`
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-fake"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	f := File{filepath.Join(dir, "config.json")}
	if err := os.WriteFile(f.Path, []byte(`{"credsStore":"fake","auths":{"plain.example":{"auth":"YTpi"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]Credential{"reg.example": {"<token>", "tok", true}, "plain.example": {Username: "a", Secret: "b"}, "nothing": {}} {
		if got, err := f.Get(t.Context(), host); err != nil || got != want {
			t.Errorf("Get(%s) = %v, %v; want %v", host, got, err, want)
		}
	}
}
