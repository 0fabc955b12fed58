package carry

import (
	"bytes"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
)

func put(t *testing.T, root, name, text string) {
	t.Helper()
	p := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), 0o640); err != nil {
		t.Fatal(err)
	}
}

func list(t *testing.T, root string) string {
	t.Helper()
	var out []string
	err := filepath.Walk(root, func(p string, st os.FileInfo, err error) error {
		if err == nil && !st.IsDir() {
			rel, _ := filepath.Rel(root, p)
			data, _ := os.ReadFile(p)
			if to, err := os.Readlink(p); err == nil {
				data = []byte("->" + to)
			}
			out = append(out, rel+"="+string(data))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	sort.Strings(out)
	return strings.Join(out, " ")
}

func TestCopyAsCp(t *testing.T) {
	for _, c := range []struct{ from, to, want string }{
		{"/d", "/new", "new/a=1 new/s/b=2 there/x=old"},
		{"/d", "/there", "there/d/a=1 there/d/s/b=2 there/x=old"},
		{"/d/.", "/there", "there/a=1 there/s/b=2 there/x=old"},
		{"/d/.", "/new", "new/a=1 new/s/b=2 there/x=old"},
		{"/d/a", "/there", "there/a=1 there/x=old"},
		{"/d/a", "/there/x", "there/x=1"},
		{"/d/a", "/f", "f=1 there/x=old"},
		{"/link/a", "/f", "f=1 there/x=old"}, // an absolute link inside the tree
	} {
		src, dst := t.TempDir(), t.TempDir()
		put(t, src, "d/a", "1")
		put(t, src, "d/s/b", "2")
		if err := os.Symlink("/d", filepath.Join(src, "link")); err != nil {
			t.Fatal(err)
		}
		put(t, dst, "there/x", "old")
		var b bytes.Buffer
		if err := Pack(&b, src, c.from, false); err != nil {
			t.Fatalf("%v: %v", c, err)
		}
		if err := Unpack(&b, Target{Root: dst, Path: c.to}); err != nil {
			t.Fatalf("%v: %v", c, err)
		}
		if got := list(t, dst); got != c.want {
			t.Errorf("%s to %s: %s, want %s", c.from, c.to, got, c.want)
		}
	}
}

func TestNothingLeavesTheTree(t *testing.T) {
	outside, tree, src := t.TempDir(), t.TempDir(), t.TempDir()
	put(t, outside, "secret", "s")
	put(t, src, "f", "new")
	for name, to := range map[string]string{"abs": outside, "up": "../../../../../../" + outside} {
		if err := os.Symlink(to, filepath.Join(tree, name)); err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := Pack(&b, tree, "/"+name+"/secret", true); err == nil {
			t.Errorf("%s: what is outside was read", name)
		}
		b.Reset()
		if err := Pack(&b, src, "/f", false); err != nil {
			t.Fatal(err)
		}
		_ = Unpack(&b, Target{Root: tree, Path: "/" + name + "/secret"}) // an error or a file inside
	}
	if got := list(t, outside); got != "secret=s" {
		t.Errorf("outside: %s", got)
	}
}
