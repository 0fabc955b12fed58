package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/spec"
	"github.com/berthd/berth/host/tree"
)

// ent is one tar entry of a test layer.
type ent struct {
	tar.Header
	text string
}

func file(name, text string) ent {
	return ent{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, text}
}
func dir(name string) ent {
	return ent{tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755}, ""}
}
func link(name, to string) ent {
	return ent{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to, Mode: 0o777}, ""}
}
func hard(name, to string) ent {
	return ent{tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to, Mode: 0o644}, ""}
}
func node(flag byte, name string, major, minor int64) ent {
	return ent{tar.Header{Typeflag: flag, Name: name, Mode: 0o600, Devmajor: major, Devminor: minor}, ""}
}
func (e ent) with(f func(h *tar.Header)) ent { f(&e.Header); return e }
func (e ent) xattr(name, value string) ent {
	m := map[string]string{paxXattr + name: value}
	for k, v := range e.PAXRecords {
		m[k] = v
	}
	e.PAXRecords = m
	return e
}

func layer(t testing.TB, entries ...ent) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		if e.ModTime.IsZero() {
			e.ModTime = time.Unix(1700000000, 123456789)
			e.Format = tar.FormatPAX
		}
		e.Size = int64(len(e.text))
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatalf("%s: %v", e.Name, err)
		}
		if _, err := io.WriteString(w, e.text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// ground is a directory to unpack into with a CANARY beside it.
type ground struct {
	testing.TB
	root, canary string
	before       string
}

func newGround(t testing.TB) *ground {
	t.Helper()
	g := &ground{TB: t}
	top := t.TempDir()
	g.root, g.canary = filepath.Join(top, "root"), filepath.Join(top, "CANARY")
	must(t, os.Mkdir(g.root, 0o755))
	must(t, os.MkdirAll(filepath.Join(g.canary, "sub"), 0o750))
	for _, f := range []string{"file", "sub/file", "passwd"} {
		must(t, os.WriteFile(filepath.Join(g.canary, f), []byte("canary "+f), 0o640))
	}
	must(t, unix.Setxattr(filepath.Join(g.canary, "file"), "user.canary", []byte("1"), 0))
	must(t, os.Symlink("file", filepath.Join(g.canary, "link")))
	old := time.Unix(1600000000, 5)
	for _, f := range []string{"file", "sub/file", "sub", "passwd", ""} {
		must(t, os.Chtimes(filepath.Join(g.canary, f), old, old))
	}
	g.before = fingerprint(t, g.canary)
	return g
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// apply unpacks and finishes, and checks what must hold whatever the layer is.
func (g *ground) apply(style spec.Whiteout, data []byte, parents ...string) error {
	g.Helper()
	res, err := Apply(g.ctx(), g.root, bytes.NewReader(data), ApplyOptions{Whiteout: style})
	if err == nil {
		err = Finish(g.ctx(), g.root, res.Unresolved, parents)
	}
	g.check()
	return err
}

func (g *ground) ctx() context.Context {
	if t, ok := g.TB.(*testing.T); ok {
		return t.Context()
	}
	return context.Background()
}

func (g *ground) check() {
	g.Helper()
	if now := fingerprint(g.TB, g.canary); now != g.before {
		g.Fatalf("CANARY changed:\n%s\nwas\n%s", now, g.before)
	}
}

// fingerprint tells type, mode, owner, times, xattrs, link count and contents of
// everything in a tree.
func fingerprint(t testing.TB, root string) string {
	t.Helper()
	var out strings.Builder
	top, err := tree.OpenRoot(root)
	must(t, err)
	defer unix.Close(top)
	var st unix.Stat_t
	must(t, unix.Fstat(top, &st))
	fmt.Fprintf(&out, ". %s\n", facts(t, top, "", st))
	fingerprintDir(t, &out, top, "")
	return out.String()
}

func facts(t testing.TB, dir int, name string, st unix.Stat_t) string {
	x, err := tree.Xattrs(dir, name)
	must(t, err)
	slices.SortFunc(x, func(a, b tree.Xattr) int { return strings.Compare(a.Name, b.Name) })
	attrs := ""
	for _, a := range x {
		attrs += fmt.Sprintf(" %s=%q", a.Name, a.Value)
	}
	nlink := uint64(st.Nlink) //nolint:unconvert // another type on arm64
	if tree.Format(st.Mode) == unix.S_IFDIR {
		nlink = 0
	}
	return fmt.Sprintf("%o %d:%d %d.%09d n%d r%d%s", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec, nlink, st.Rdev, attrs)
}

func fingerprintDir(t testing.TB, out *strings.Builder, dir int, path string) {
	list, err := tree.SortedEntries(dir)
	must(t, err)
	for _, e := range list {
		st, err := tree.Stat(dir, e.Name)
		must(t, err)
		fmt.Fprintf(out, "%s%s %s", path, e.Name, facts(t, dir, e.Name, st))
		switch tree.Format(st.Mode) {
		case unix.S_IFREG:
			fd, err := tree.Open(dir, e.Name, unix.O_RDONLY, 0)
			must(t, err)
			f := os.NewFile(uintptr(fd), e.Name)
			h := sha256.New()
			n, err := io.Copy(h, f)
			must(t, err)
			f.Close()
			fmt.Fprintf(out, " %d %x\n", n, h.Sum(nil)[:8])
		case unix.S_IFLNK:
			to, err := tree.Readlink(dir, e.Name)
			must(t, err)
			fmt.Fprintf(out, " -> %s\n", to)
		case unix.S_IFDIR:
			out.WriteString("/\n")
			fd, err := tree.OpenDir(dir, e.Name)
			must(t, err)
			fingerprintDir(t, out, fd, path+e.Name+"/")
			unix.Close(fd)
		default:
			out.WriteString("\n")
		}
	}
}

func (g *ground) text(name string) string {
	data, err := os.ReadFile(filepath.Join(g.root, name))
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// TestCorpusT unpacks the hostile layers of corpus T in both styles: into an empty
// directory, a second time over the result, and over a victim layer. CANARY is
// never touched, and the verdict is the one that is written here.
func TestCorpusT(t *testing.T) {
	big := strings.Repeat("x", 256)
	deep := strings.Repeat("d/", 2040)
	chain := func(n int) []ent {
		out := []ent{dir("end"), link("l0", "end")}
		for i := 1; i < n; i++ {
			out = append(out, link(fmt.Sprintf("l%d", i), fmt.Sprintf("l%d", i-1)))
		}
		return append(out, file(fmt.Sprintf("l%d/x", n-1), "x"))
	}
	const canary = "../CANARY"
	cases := []struct {
		name string
		bad  error // nil: must succeed
		in   []ent
		want map[string]string // files and their contents afterwards
	}{
		{"T01 name leads up", nil, []ent{file("../x", "in")}, map[string]string{"x": "in"}},
		{"T02 absolute name", nil, []ent{file("/x", "in")}, map[string]string{"x": "in"}},
		{"T03 name leads up in the middle", nil, []ent{dir("a"), file("a/../../x", "in")}, map[string]string{"x": "in"}},
		{"T04 through a relative link out", nil, []ent{link("a", canary), file("a/x", "in")}, map[string]string{"CANARY/x": "in"}},
		{"T04 through an absolute link out", nil, []ent{link("a", "/etc"), file("a/passwd", "in")}, map[string]string{"etc/passwd": "in"}},
		{"T04 over a file through a link out", nil, []ent{link("a", canary), file("a/file", "in")}, map[string]string{"CANARY/file": "in"}},
		{"T04 link to a file then the name itself", nil, []ent{link("a", canary+"/file"), file("a", "in")}, map[string]string{"a": "in"}},
		{"T05 chain of 40 links", nil, chain(40), map[string]string{"end/x": "x"}},
		{"T05 chain of 41 links", errs.InvalidArgument, chain(41), nil},
		{"T05 chain of 10000 links", errs.InvalidArgument, chain(10000), nil},
		{"T06 link loop", errs.InvalidArgument, []ent{link("a", "b"), link("b", "a"), file("a/x", "")}, nil},
		{"T06 link to itself", errs.InvalidArgument, []ent{link("a", "a"), file("a/x", "")}, nil},
		{"T07 hardlink to an absolute name", errs.InvalidArgument, []ent{hard("a", "/CANARY/file")}, nil},
		{"T07 hardlink upwards", errs.InvalidArgument, []ent{hard("a", canary+"/file")}, nil},
		{"T07 hardlink through a link", errs.InvalidArgument, []ent{link("l", canary), hard("a", "l/file")}, nil},
		{"T07 hardlink to the root", errs.InvalidArgument, []ent{hard("a", "/")}, nil},
		{"T07 hardlink to a directory", unix.EPERM, []ent{dir("d"), hard("a", "d")}, nil},
		{"T08 hardlink to a link, written through", nil, []ent{link("a", canary+"/file"), hard("b", "a"), file("b", "in")}, map[string]string{"b": "in"}},
		{"T08 CVE-2021-32760", nil, []ent{link("a", canary+"/file"), hard("b", "a").with(func(h *tar.Header) { h.Mode, h.Uid, h.Gid = 0o7777, 5, 6 }).xattr("user.x", "1"),
			link("a", canary).with(func(h *tar.Header) { h.Mode, h.Uid = 0o7777, 7 })}, nil},
		{"T09 directory replaced by a link, then a child", nil, []ent{dir("d"), file("d/x", "1"), link("d", canary), file("d/y", "in")}, map[string]string{"CANARY/y": "in"}},
		{"T09 CVE-2025-47290 with links", nil, []ent{dir("d"), file("d/x", "1"), link("d", canary), link("d/file", "z"), hard("d/h", "d/file"), dir("d/sub"),
			node(tar.TypeFifo, "d/passwd", 0, 0)}, nil},
		{"T09 directory replaced by a file, then a child", errs.InvalidArgument, []ent{dir("d"), file("d", "1"), file("d/x", "")}, nil},
		{"T10 link replaced by a directory, then a child", nil, []ent{link("d", canary), dir("d"), file("d/file", "in")}, map[string]string{"d/file": "in"}},
		{"T11 root as directory", nil, []ent{dir(".").with(func(h *tar.Header) { h.Mode, h.Uid = 0, 99 }), dir("/"), file("x", "1")}, map[string]string{"x": "1"}},
		{"T11 root as link", nil, []ent{link(".", canary), file("x", "in")}, map[string]string{"x": "in"}},
		{"T11 root as file", nil, []ent{file(".", "text"), file("x", "in")}, map[string]string{"x": "in"}},
		{"T12 .wh.", errs.InvalidArgument, []ent{file(".wh.", "")}, nil},
		{"T12 .wh..", errs.InvalidArgument, []ent{file(".wh..", "")}, nil},
		{"T12 .wh...", errs.InvalidArgument, []ent{file("a/.wh...", "")}, nil},
		{"T12 .wh./x", errs.InvalidArgument, []ent{file(".wh./x", "")}, nil},
		{"T12 .wh.a/b", errs.InvalidArgument, []ent{file("d/.wh.a/b", "")}, nil},
		{"T12 .wh..wh.x", nil, []ent{file(".wh..wh.x", "")}, nil},
		{"T13 opaque marker through a link", nil, []ent{link("a", canary), file("a/.wh..wh..opq", ""), file("a/x", "in")}, map[string]string{"CANARY/x": "in"}},
		{"T13 opaque marker after children", nil, []ent{dir("d"), file("d/x", "1"), file("d/.wh..wh..opq", ""), file("d/y", "2")}, map[string]string{"d/x": "1", "d/y": "2"}},
		{"T13 opaque root", nil, []ent{file("x", "1"), file(".wh..wh..opq", "")}, map[string]string{"x": "1"}},
		{"T14 whiteout through a link", nil, []ent{link("a", canary), file("a/.wh.file", ""), file("a/.wh.sub", "")}, nil},
		{"T15 device out of range", errs.InvalidArgument, []ent{node(tar.TypeChar, "c", 1<<20, 0)}, nil},
		{"T15 devices", nil, []ent{node(tar.TypeChar, "c", 1, 1), node(tar.TypeBlock, "b", 7, 200), node(tar.TypeFifo, "f", 0, 0), node(tar.TypeChar, "posing", 0, 0)}, nil},
		{"T15 unknown type", errs.InvalidArgument, []ent{file("s", "").with(func(h *tar.Header) { h.Typeflag = 'Z' })}, nil},
		{"T16 mode bits", nil, []ent{file("f", "x").with(func(h *tar.Header) { h.Mode = 0o107777 })}, map[string]string{"f": "x"}},
		{"T17 overlay's own attributes", nil, []ent{dir("d").xattr("trusted.overlay.opaque", "y").xattr("trusted.overlay.redirect", "/etc"),
			file("d/m", "x").xattr("trusted.overlay.metacopy", "").xattr("trusted.overlay.origin", "z")}, map[string]string{"d/m": "x"}},
		{"T17 attribute too large", errs.InvalidArgument, []ent{file("f", "").xattr("user.big", strings.Repeat("v", 64<<10+1))}, nil},
		{"T18 name of 255 bytes", nil, []ent{file(big[:255], "x")}, map[string]string{big[:255]: "x"}},
		{"T18 name of 256 bytes", unix.ENAMETOOLONG, []ent{file(big, "x")}, nil},
		{"T18 2040 levels", nil, []ent{file(deep+"x", "in")}, nil},
		{"T18 4096 levels", errs.InvalidArgument, []ent{file(deep+deep+"x", "in")}, nil},
		{"T18 newline, dots, case twins, not UTF-8", nil, []ent{file("a\nb", "1"), file("A", "2"), file("a", "3"), file("...", "4"), file("x\xff", "5"), file("t//./u", "6")},
			map[string]string{"a\nb": "1", "A": "2", "a": "3", "...": "4", "x\xff": "5", "t/u": "6"}},
		{"T19 owner 2^32 would be root", errs.InvalidArgument, []ent{file("f", "").with(func(h *tar.Header) { h.Uid = 1 << 32 })}, nil},
		{"T19 owner -1 would be no change", errs.InvalidArgument, []ent{file("f", "").with(func(h *tar.Header) { h.Gid = -1; h.Format = tar.FormatGNU; h.ModTime = time.Unix(9, 0) })}, nil},
		{"T19 owner 2^32-2", nil, []ent{file("f", "x").with(func(h *tar.Header) { h.Uid = 1<<32 - 2 })}, map[string]string{"f": "x"}},
		{"T19 times of all sizes", nil, []ent{file("f", "x").with(func(h *tar.Header) { h.ModTime = time.Unix(-5, 0); h.Format = tar.FormatGNU }),
			file("g", "x").with(func(h *tar.Header) { h.ModTime = time.Unix(1<<40, 0); h.Format = tar.FormatGNU })}, map[string]string{"f": "x", "g": "x"}},
		{"hardlink inside what it replaces", errs.InvalidArgument, []ent{dir("d"), file("d/x", "1"), hard("d", "d/x")}, nil},
		{"hardlink to itself", nil, []ent{file("a", "1"), hard("a", "a")}, map[string]string{"a": "1"}},
	}
	for _, style := range []spec.Whiteout{spec.WhiteoutOverlay, spec.WhiteoutOverlayUser, spec.WhiteoutRemove} {
		for _, c := range cases {
			if style != spec.WhiteoutOverlay && len(c.in) > 1000 {
				continue // once is enough of the long one
			}
			t.Run(fmt.Sprintf("%d %s", style, c.name), func(t *testing.T) {
				data := layer(t, c.in...)
				for round, over := range []bool{false, true} {
					g := newGround(t)
					if over {
						must(t, g.apply(style, layer(t, dir("d"), dir("CANARY"), file("CANARY/file", "low"), link("x", "y"), dir("a"), file("a/x", "low"), file("f", "low"), dir("l3"))))
						if _, err := os.Lstat(filepath.Join(g.root, "a")); err != nil {
							t.Fatal(err)
						}
					}
					for again := range 2 {
						if over && again == 1 {
							break
						}
						err := g.apply(style, data)
						if c.bad == nil && err != nil && !over {
							t.Fatalf("round %d: %v", round, err)
						}
						if c.bad != nil && !errors.Is(err, c.bad) && (!over || err != nil) {
							if !(style == spec.WhiteoutRemove && errors.Is(err, unix.ENOENT)) {
								t.Fatalf("round %d: %v, want %v", round, err, c.bad)
							}
						}
						if over {
							continue
						}
						for name, want := range c.want {
							if got := g.text(name); got != want {
								t.Errorf("round %d: %s holds %q, want %q", round, name, got, want)
							}
						}
					}
				}
			})
		}
	}
}

// TestSwap unpacks while a thread swaps directories for links out of the root,
// forward and back, as fast as it can (CVE-2025-47290, containerd PR 12971).
func TestSwap(t *testing.T) {
	for _, style := range []spec.Whiteout{spec.WhiteoutOverlay, spec.WhiteoutRemove} {
		g := newGround(t)
		var in []ent
		for i := range 30 {
			d := fmt.Sprintf("d%d", i%3)
			in = append(in, dir(d), dir(d+"/s"), file(d+"/file", "in"), file(d+"/s/passwd", "in"), link(d+"/link", "x"), hard(d+"/h", d+"/file"),
				node(tar.TypeFifo, d+"/fifo", 0, 0), file(d+"/.wh.sub", ""), file(d+"/s/.wh..wh..opq", ""), file(d+"/s", "f").xattr("user.x", "y"))
		}
		data := layer(t, in...)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for i := range 3 {
			wg.Go(func() { swap(filepath.Join(g.root, fmt.Sprintf("d%d", i)), g.canary, stop) })
		}
		end := time.Now().Add(2 * time.Second)
		rounds, fine := 0, 0
		for ; time.Now().Before(end); rounds++ {
			if g.apply(style, data) == nil {
				fine++
			}
		}
		close(stop)
		wg.Wait()
		g.check()
		t.Logf("style %d: %d rounds of %d entries, %d without an error", style, rounds, len(in), fine)
		if rounds == 0 {
			t.Error("nothing was unpacked")
		}
	}
}

func swap(path, canary string, stop chan struct{}) {
	aside, trap := path+".aside", path+".trap"
	for n := 0; ; n++ {
		select {
		case <-stop:
			return
		default:
		}
		_ = os.Symlink(canary, trap)
		if unix.Renameat2(unix.AT_FDCWD, trap, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE) == nil {
			_ = unix.Renameat2(unix.AT_FDCWD, trap, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE)
		} else {
			_ = os.Rename(trap, path)
			_ = os.Rename(path, aside)
			_ = os.Remove(aside)
		}
	}
}
