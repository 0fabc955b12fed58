package mount

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berthd/berth/base/spec"
)

// TestLookLeavesNoTrace: an overlay that is only read is nowhere in the mount table
// while it is used, and shows what a mounted one shows.
func TestLookLeavesNoTrace(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"a/low": "low", "a/both": "below", "b/both": "above"} {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	m := spec.Mount{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=" + filepath.Join(dir, "b") + ":" + filepath.Join(dir, "a")}}
	err := Look(t.Context(), []spec.Mount{m}, func(root string) error {
		table, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			return err
		}
		if strings.Contains(string(table), dir) {
			t.Errorf("it is in the mount table")
		}
		for name, want := range map[string]string{"low": "low", "both": "above"} {
			if got, err := os.ReadFile(filepath.Join(root, name)); err != nil || string(got) != want {
				t.Errorf("%s: %q, %v", name, got, err)
			}
		}
		if err := os.WriteFile(filepath.Join(root, "new"), nil, 0o644); err == nil {
			t.Error("it can be written to")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
