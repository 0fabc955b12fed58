package archive

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/spec"
	"github.com/berthd/berth/host/mount"
	"github.com/berthd/berth/host/tree"
)

func lowerLayer(t testing.TB) []byte {
	return layer(t, dir("d"), file("d/same", "1"), file("d/changed", "1"), file("d/gone", "1"), dir("d/sub"), file("d/sub/x", "1"),
		file("h1", "linked"), hard("h2", "h1"), hard("h3", "h1"), link("l", "d"), dir("e"), file("e/f", "1"), dir("empty"),
		node(tar.TypeChar, "null", 1, 3), file("typed", "1"), dir("untouched"), file("untouched/f", "1"),
		file("whole", "aaaa").with(func(h *tar.Header) { h.ModTime = time.Unix(5, 0) }))
}

// changeTree makes every kind of change below root.
func changeTree(t testing.TB, root string) {
	in := func(s string) string { return filepath.Join(root, s) }
	must(t, os.WriteFile(in("d/changed"), []byte("other"), 0o600))
	must(t, os.Remove(in("d/gone")))
	must(t, os.RemoveAll(in("d/sub")))
	must(t, os.Mkdir(in("d/sub"), 0o711))
	must(t, os.WriteFile(in("d/sub/new"), []byte("n"), 0o4755))
	must(t, os.Chmod(in("d/sub/new"), 0o755|os.ModeSetuid))
	must(t, os.Chmod(in("h1"), 0o600))
	must(t, os.Remove(in("h3")))
	must(t, os.RemoveAll(in("e")))
	must(t, os.Symlink("/d", in("e")))
	must(t, os.Lchown(in("e"), 4, 5))
	must(t, os.Remove(in("typed")))
	must(t, os.Mkdir(in("typed"), 0o755))
	must(t, os.WriteFile(in("typed/f"), []byte("in"), 0o644))
	must(t, unix.Setxattr(in("typed/f"), "user.k", []byte("v\x00w"), 0))
	must(t, os.Link(in("typed/f"), in("typed/g")))
	must(t, unix.Mkfifo(in("fifo"), 0o640))
	must(t, unix.Mknod(in("dev"), unix.S_IFBLK|0o600, int(unix.Mkdev(7, 300))))
	must(t, unix.Chmod(in("fifo"), 0o640))
	must(t, os.Remove(in("null")))
	old := time.Unix(5, 0)
	must(t, os.WriteFile(in("whole"), []byte("bbbb"), 0o644))
	must(t, os.Chtimes(in("whole"), old, old))
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	must(t, err)
	must(t, unix.Bind(s, &unix.SockaddrUnix{Name: in("sock")}))
	must(t, unix.Close(s))
	must(t, os.Remove(in("sock")))
}

// names lists the entries of a layer.
func names(t testing.TB, data []byte) []string {
	var out []string
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return out
		}
		must(t, err)
		n := h.Name
		if h.Typeflag == tar.TypeLink || h.Typeflag == tar.TypeSymlink {
			n += " -> " + h.Linkname
		}
		out = append(out, n)
	}
}

// withoutDirTimes takes the times of directories, which no diff promises, and of
// the root out of a fingerprint.
func withoutDirTimes(s string) string {
	var out []string
	for l := range strings.Lines(s) {
		f := strings.Fields(l)
		if strings.HasPrefix(f[1], "4") && len(f[1]) == 5 {
			f[3] = "-"
		}
		out = append(out, strings.Join(f, " "))
	}
	return strings.Join(out, "\n")
}

var wantChanges = []string{
	"d/", "d/changed", "d/.wh.gone", "d/sub/", "d/sub/new", "d/sub/.wh.x", "dev", "e -> /d", "fifo", "h1", "h2 -> h1", ".wh.h3", ".wh.null",
	"typed/", "typed/f", "typed/g -> typed/f", "whole",
}

// TestDiff compares two plain trees and applies the result to the first again.
func TestDiff(t *testing.T) {
	top := t.TempDir()
	low, up, back := filepath.Join(top, "low"), filepath.Join(top, "up"), filepath.Join(top, "back")
	for _, d := range []string{low, up, back} {
		must(t, os.Mkdir(d, 0o755))
	}
	_, err := Apply(t.Context(), low, bytes.NewReader(lowerLayer(t)), ApplyOptions{})
	must(t, err)
	must(t, tree.Copy(t.Context(), up, low))
	must(t, tree.Copy(t.Context(), back, low))
	changeTree(t, up)
	var one, two bytes.Buffer
	must(t, Diff(t.Context(), &one, low, up, DiffOptions{}))
	must(t, Diff(t.Context(), &two, low, up, DiffOptions{}))
	if !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Error("two diffs of the same trees differ")
	}
	if got := names(t, one.Bytes()); !slices.Equal(got, wantChanges) {
		t.Errorf("changes are\n%q\nwant\n%q", got, wantChanges)
	}
	_, err = Apply(t.Context(), back, &one, ApplyOptions{Whiteout: spec.WhiteoutRemove})
	must(t, err)
	if got, want := withoutDirTimes(fingerprint(t, back)), withoutDirTimes(fingerprint(t, up)); got != want {
		t.Errorf("applied diff is\n%s\nwant\n%s", got, want)
	}
	two.Reset()
	must(t, Diff(t.Context(), &two, up, back, DiffOptions{}))
	if got := names(t, two.Bytes()); len(got) > 0 {
		t.Errorf("equal trees differ in %q", got)
	}
	must(t, Diff(t.Context(), &two, "", up, DiffOptions{Epoch: time.Unix(1000, 0)}))
	for r := tar.NewReader(&two); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		must(t, err)
		if h.ModTime.After(time.Unix(1000, 0)) {
			t.Errorf("%s has a time after the epoch: %v", h.Name, h.ModTime)
		}
	}
}

// TestDiffUpper makes the changes in an overlay, takes the layer from the mounted
// trees and from the upper directory, and finds both to mean the same.
func TestDiffUpper(t *testing.T) {
	top := t.TempDir()
	in := func(s string) string { return filepath.Join(top, s) }
	for _, d := range []string{"low", "up", "work", "low2"} {
		must(t, os.Mkdir(in(d), 0o755))
	}
	_, err := Apply(t.Context(), in("low"), bytes.NewReader(lowerLayer(t)), ApplyOptions{})
	must(t, err)
	lowerMount := []spec.Mount{{Type: "bind", Source: in("low"), Options: []string{"rbind", "ro"}}}
	upperMount := []spec.Mount{{Type: "overlay", Source: "overlay", Options: []string{"index=off", "lowerdir=" + in("low2") + ":" + in("low"), "upperdir=" + in("up"), "workdir=" + in("work")}}}
	var walked, direct bytes.Buffer
	var want string
	must(t, mount.Temp(t.Context(), upperMount, func(up string) error {
		changeTree(t, up)
		must(t, os.Mkdir(filepath.Join(up, "brandnew"), 0o755))                        // opaque by itself, and hides nothing
		want = strings.ReplaceAll(withoutDirTimes(fingerprint(t, up)), " n3 ", " n1 ") // overlay breaks links when it copies up
		return mount.Temp(t.Context(), lowerMount, func(low string) error {
			return Diff(t.Context(), &walked, low, up, DiffOptions{})
		})
	}))
	must(t, DiffUpper(t.Context(), &direct, in("up"), []string{in("low2"), in("low")}, DiffOptions{}))
	if got := strings.Join(names(t, direct.Bytes()), " "); strings.Contains(got, "brandnew/.wh") || !strings.Contains(got, "d/sub/.wh..wh..opq") {
		t.Errorf("changes of the upper directory are %s", got)
	}
	for what, data := range map[string][]byte{"mounted trees": walked.Bytes(), "upper directory": direct.Bytes()} {
		dir := t.TempDir()
		must(t, tree.Copy(t.Context(), dir, in("low")))
		must(t, os.Chmod(dir, 0o755))
		_, err := Apply(t.Context(), dir, bytes.NewReader(data), ApplyOptions{Whiteout: spec.WhiteoutRemove})
		must(t, err)
		if got := withoutDirTimes(fingerprint(t, dir)); got != want {
			t.Errorf("layer of the %s gives\n%s\nwant\n%s", what, got, want)
		}
	}
	must(t, unix.Setxattr(in("up/typed"), "trusted.overlay.redirect", []byte("/d"), 0))
	if err := DiffUpper(t.Context(), io.Discard, in("up"), nil, DiffOptions{}); !errors.Is(err, errs.Unimplemented) {
		t.Errorf("a redirect gives %v", err)
	}
}

// TestDiffOfWhiteoutName: a file of a container must not become a deletion.
func TestDiffOfWhiteoutName(t *testing.T) {
	up := t.TempDir()
	must(t, os.WriteFile(filepath.Join(up, ".wh.etc"), nil, 0o644))
	for what, err := range map[string]error{
		"Diff":      Diff(t.Context(), io.Discard, "", up, DiffOptions{}),
		"DiffUpper": DiffUpper(t.Context(), io.Discard, up, nil, DiffOptions{}),
	} {
		if !errors.Is(err, errs.InvalidArgument) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
