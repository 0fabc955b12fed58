package archive

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/spec"
)

func (g *ground) stat(name string) (st unix.Stat_t) {
	g.Helper()
	must(g, unix.Lstat(filepath.Join(g.root, name), &st))
	return st
}

// TestAttributes checks everything that an entry says of its file.
func TestAttributes(t *testing.T) {
	for _, umask := range []int{0, 0o22, 0o77} {
		old := unix.Umask(umask)
		t.Cleanup(func() { unix.Umask(old) })
		g := newGround(t)
		at := time.Unix(1500000000, 987654321)
		set := func(mode int64, uid, gid int) func(h *tar.Header) {
			return func(h *tar.Header) {
				h.Mode, h.Uid, h.Gid, h.ModTime, h.AccessTime, h.Format = mode, uid, gid, at, at.Add(time.Hour), tar.FormatPAX
			}
		}
		caps := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" // cap_net_raw=ep
		must(t, g.apply(spec.WhiteoutOverlay, layer(t,
			dir("d").with(set(0o2775, 0, 50)).xattr("user.d", "1"),
			file("d/inherits", "x").with(set(0o666, 0, 0)),
			dir("d/sub").with(set(0o755, 0, 0)),
			file("suid", "x").with(set(0o4755, 11, 12)).xattr("security.capability", caps).xattr("user.k", "v"),
			file("open", "").with(set(0o777, 0, 0)),
			file("shut", "s").with(set(0, 1, 1)),
			link("l", "nowhere").with(set(0o777, 3, 4)),
			node(tar.TypeChar, "c", 4, 70000).with(set(0o620, 5, 6)),
			node(tar.TypeFifo, "p", 0, 0).with(set(0o666, 0, 7)),
			hard("suid2", "suid").with(set(0o4755, 11, 12)),
		)))
		for _, c := range []struct {
			name     string
			mode     uint32
			uid, gid uint32
		}{
			{"d", 0o42775, 0, 50}, {"d/inherits", 0o100666, 0, 0}, {"d/sub", 0o40755, 0, 0}, {"suid", 0o104755, 11, 12}, {"open", 0o100777, 0, 0},
			{"shut", 0o100000, 1, 1}, {"l", 0o120777, 3, 4}, {"c", 0o20620, 5, 6}, {"p", 0o10666, 0, 7}, {"suid2", 0o104755, 11, 12},
		} {
			st := g.stat(c.name)
			if st.Mode != c.mode || st.Uid != c.uid || st.Gid != c.gid {
				t.Errorf("umask %o: %s is %o %d:%d, want %o %d:%d", umask, c.name, st.Mode, st.Uid, st.Gid, c.mode, c.uid, c.gid)
			}
			if st.Mtim.Nano() != at.UnixNano() || st.Atim.Nano() != at.Add(time.Hour).UnixNano() {
				t.Errorf("umask %o: %s has times %d and %d", umask, c.name, st.Atim.Nano(), st.Mtim.Nano())
			}
		}
		if st := g.stat("c"); unix.Major(st.Rdev) != 4 || unix.Minor(st.Rdev) != 70000 {
			t.Errorf("c is device %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		got := fingerprint(t, g.root)
		for _, want := range []string{`security.capability=`, `user.k="v"`, `user.d="1"`, "n2"} {
			if !strings.Contains(got, want) {
				t.Errorf("%s is missing in\n%s", want, got)
			}
		}
	}
}

// TestDefaultACL: modes are the layer's also below a directory with a default ACL.
func TestDefaultACL(t *testing.T) {
	g := newGround(t)
	acl := "\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x04\x00\x05\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff" // u::rwx g::r-x o::---
	must(t, g.apply(spec.WhiteoutOverlay, layer(t, dir("d").xattr(aclDefault, acl), file("d/f", "x").with(func(h *tar.Header) { h.Mode = 0o666 }))))
	if st := g.stat("d/f"); st.Mode != 0o100666 {
		t.Errorf("d/f has mode %o", st.Mode)
	}
}

// TestFinish fills layers before their parents and gives them what they need then.
func TestFinish(t *testing.T) {
	top := t.TempDir()
	var dirs []string
	for i, data := range [][]byte{
		layer(t, dir("d").with(func(h *tar.Header) { h.Mode, h.Uid = 0o1770, 5 }).xattr("user.d", "low"), dir("d/e").with(func(h *tar.Header) { h.Mode = 0o700 }),
			file("d/e/f", "low").with(func(h *tar.Header) { h.Uid = 9; h.Mode = 0o640 }).xattr("user.f", "1"),
			link("lnk", "d"), dir("hid").with(func(h *tar.Header) { h.Mode = 0o700 }), dir("hid/in").with(func(h *tar.Header) { h.Mode = 0o700 }),
			dir("swap").with(func(h *tar.Header) { h.Mode = 0o700 }), file("gone", "x")),
		layer(t, dir("d").with(func(h *tar.Header) { h.Mode = 0o711 }), file("hid/.wh..wh..opq", ""), file(".wh.gone", ""), file("swap", "now a file")),
		layer(t, file("d/e/new", "x"), hard("copy", "d/e/f"), hard("copy2", "copy"), hard("late", "after"), file("after", "here"),
			file("lnk/q", "x"), file("hid/in/x", "x"), file("swap/x", "x"), file("nolower/x", "x"), dir("nolower").with(func(h *tar.Header) { h.Mode = 0o750 }),
			hard("over", "d/e/f"), file("over", "mine"), file("was/x", ""), link("was", "d")),
	} {
		d := filepath.Join(top, fmt.Sprint(i))
		must(t, os.Mkdir(d, 0o755))
		res, err := Apply(t.Context(), d, bytes.NewReader(data), ApplyOptions{})
		must(t, err)
		if i == 2 && (len(res.Unresolved.Links) != 4 || len(res.Unresolved.Dirs) == 0) {
			t.Errorf("unresolved: %+v", res.Unresolved)
		}
		must(t, Finish(t.Context(), d, res.Unresolved, dirs))
		dirs = append([]string{d}, dirs...)
	}
	g := &ground{TB: t, root: dirs[0]}
	for name, want := range map[string]struct {
		mode uint32
		uid  uint32
	}{
		"d": {0o40711, 0}, "d/e": {0o40700, 0}, "lnk": {0o40711, 0}, "hid": {0o40755, 0}, "hid/in": {0o40755, 0}, "swap": {0o40755, 0},
		"nolower": {0o40750, 0}, "copy": {0o100640, 9},
	} {
		if st := g.stat(name); st.Mode != want.mode || st.Uid != want.uid {
			t.Errorf("%s is %o of %d, want %o of %d", name, st.Mode, st.Uid, want.mode, want.uid)
		}
	}
	if st := g.stat("d/e"); st.Mtim.Nano() != 1700000000123456789 {
		t.Errorf("d/e has time %d", st.Mtim.Nano())
	}
	if a, b := g.stat("copy"), g.stat("copy2"); a.Ino != b.Ino || a.Nlink != 2 {
		t.Errorf("copy and copy2 are not one file: %d %d", a.Nlink, b.Nlink)
	}
	for name, want := range map[string]string{"copy": "low", "late": "here", "over": "mine"} {
		if got := g.text(name); got != want {
			t.Errorf("%s holds %q, want %q", name, got, want)
		}
	}
	if !strings.Contains(fingerprint(t, dirs[0]), `user.f="1"`) {
		t.Error("the copy has lost its attributes")
	}
	err := Finish(t.Context(), dirs[0], Unresolved{Links: []Link{{"x", "gone"}}}, dirs[1:])
	if !errors.Is(err, errs.InvalidArgument) {
		t.Errorf("a link to a deleted file gives %v", err)
	}
}

// TestRootOpaque: overlay does not obey the mark on a root, so Finish hides each name.
func TestRootOpaque(t *testing.T) {
	low, up := t.TempDir(), t.TempDir()
	_, err := Apply(t.Context(), low, bytes.NewReader(layer(t, dir("d"), file("d/x", "1"), file("f", "1"), file("g", "1"))), ApplyOptions{})
	must(t, err)
	res, err := Apply(t.Context(), up, bytes.NewReader(layer(t, file(".wh..wh..opq", ""), dir("d"), file("g", "2"))), ApplyOptions{})
	must(t, err)
	must(t, Finish(t.Context(), up, res.Unresolved, []string{low}))
	m, err := openMerged("trusted.overlay.opaque", []string{up, low})
	must(t, err)
	defer m.close()
	for name, want := range map[string]bool{"d/x": false, "f": false, "g": true} {
		if _, _, err := m.file(name); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestStylesAgree: what is left to see is the same in all styles, whatever the
// order of marks and files in the layer.
func TestStylesAgree(t *testing.T) {
	low := layer(t, dir("d"), file("d/low", "1"), dir("d/s"), file("d/s/low", "1"), dir("x"), file("x/low", "1"), file("f", "low"))
	ups := map[string][]byte{
		"opaque after":       layer(t, dir("d"), file("d/new", "2"), file("d/s/new", "2"), file("d/.wh..wh..opq", "")),
		"opaque before":      layer(t, file("d/.wh..wh..opq", ""), file("d/new", "2"), file("d/s/new", "2")),
		"whiteout after":     layer(t, dir("x"), file("x/new", "2"), file(".wh.x", "")),
		"whiteout before":    layer(t, file(".wh.x", ""), dir("x"), file("x/new", "2")),
		"whiteout, implied":  layer(t, file(".wh.x", ""), file("x/new", "2")),
		"whiteout and file":  layer(t, file("f", "new"), file(".wh.f", "")),
		"device 0:0":         layer(t, node(tar.TypeChar, "f", 0, 0), node(tar.TypeChar, "d/low", 0, 0)),
		"of what is not":     layer(t, file("nix/.wh.nix", ""), file(".wh.nada", ""), file("d/.wh.", "").with(func(h *tar.Header) { h.Name = "d/.wh.nope" })),
		"the whole root":     layer(t, file("new", "2"), file(".wh..wh..opq", ""), dir("d"), file("d/n", "3")),
		"opaque, twice, sub": layer(t, file("d/.wh..wh..opq", ""), file("d/s/.wh..wh..opq", ""), file("d/s/n", "1"), file("d/.wh..wh..opq", "")),
	}
	for what, up := range ups {
		t.Run(what, func(t *testing.T) {
			a := t.TempDir()
			for _, l := range [][]byte{low, up} {
				_, err := Apply(t.Context(), a, bytes.NewReader(l), ApplyOptions{Whiteout: spec.WhiteoutRemove})
				must(t, err)
			}
			removed := visible(t, []string{a}, "trusted.overlay.opaque")
			for _, style := range []spec.Whiteout{spec.WhiteoutOverlay, spec.WhiteoutOverlayUser} {
				l, u := t.TempDir(), t.TempDir()
				_, err := Apply(t.Context(), l, bytes.NewReader(low), ApplyOptions{Whiteout: style})
				must(t, err)
				res, err := Apply(t.Context(), u, bytes.NewReader(up), ApplyOptions{Whiteout: style})
				must(t, err)
				must(t, Finish(t.Context(), u, res.Unresolved, []string{l}))
				if got := visible(t, []string{u, l}, opaqueXattr(style)); got != removed {
					t.Errorf("style %d shows\n%s\nremoving shows\n%s", style, got, removed)
				}
			}
		})
	}
}

// visible lists files and contents of merged layers.
func visible(t *testing.T, dirs []string, attr string) string {
	m, err := openMerged(attr, dirs)
	must(t, err)
	defer m.close()
	seen := map[string]bool{}
	var out []string
	for _, d := range dirs {
		must(t, filepath.WalkDir(d, func(p string, e os.DirEntry, err error) error {
			rel, _ := filepath.Rel(d, p)
			if rel == "." || seen[rel] {
				return err
			}
			seen[rel] = true
			if in, name, err := m.file(rel); err == nil {
				data, err := os.ReadFile(filepath.Join(dirs[in.layer], rel))
				must(t, err)
				out = append(out, rel+" "+name+" "+string(data))
			} else if errors.Is(err, unix.EISDIR) {
				out = append(out, rel+"/")
			}
			return nil
		}))
	}
	return strings.Join(sorted(out), "\n")
}

func sorted(s []string) []string {
	m := map[string]int{}
	for _, v := range s {
		m[v] = 0
	}
	for k := range m {
		for _, o := range s {
			if o < k {
				m[k]++
			}
		}
	}
	return byTurn(m)
}

// repeated is a tar stream without end marks, made while it is read.
func repeated(t testing.TB, n int, part func(i int) []byte) io.Reader {
	t.Helper()
	r, w := io.Pipe()
	go func() {
		for i := range n {
			if _, err := w.Write(part(i)); err != nil {
				return
			}
		}
		w.Close()
	}()
	t.Cleanup(func() { r.Close() })
	return r
}

func block(t testing.TB, e ent) []byte { return bytes.TrimSuffix(layer(t, e), make([]byte, 1024)) }

// TestBudgets: T20 to T25 end with a typed error, in time and in little memory.
func TestBudgets(t *testing.T) {
	pax := func(size int64) io.Reader {
		h := block(t, ent{tar.Header{Typeflag: tar.TypeReg, Name: "x", Mode: 0o644, ModTime: time.Unix(1, 0), Format: tar.FormatUSTAR}, ""})
		h[156] = 'x'
		copy(h[124:136], fmt.Sprintf("%011o\x00", size))
		copy(h[148:156], "        ")
		sum := 0
		for _, b := range h[:512] {
			sum += int(b)
		}
		copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
		return io.MultiReader(bytes.NewReader(h[:512]), strings.NewReader(fmt.Sprintf("%d comment=", size)), io.LimitReader(fill('1'), size-int64(len(fmt.Sprint(size)))-10), strings.NewReader("\n"))
	}
	small := block(t, file("f", "x"))
	one := block(t, ent{tar.Header{Typeflag: tar.TypeReg, Name: "f", Mode: 0o644, ModTime: time.Unix(1, 0), Format: tar.FormatUSTAR}, ""})
	badSum := bytes.Clone(layer(t, file("f", "x")))
	badSum[len(badSum)-2048+148] ^= 1
	cases := []struct {
		name string
		r    io.Reader
		o    ApplyOptions
		want error
	}{
		{"T20 PAX header of 1 GiB", pax(1 << 30), ApplyOptions{}, errs.InvalidArgument},
		{"T20 PAX headers without end", repeated(t, 1<<20, func(int) []byte { b, _ := io.ReadAll(pax(512 << 10)); return b }), ApplyOptions{}, errs.ResourceExhausted},
		{"T22 sparse file of 4 EiB", bytes.NewReader(sparseLayer(1<<62, []int64{1 << 62, 0})), ApplyOptions{}, errs.ResourceExhausted},
		{"T22 sparse file of 1 TiB", bytes.NewReader(sparseLayer(1<<40, []int64{1 << 40, 0})), ApplyOptions{}, errs.ResourceExhausted},
		{"T22 sparse map of 100000 parts", bytes.NewReader(sparseLayer(1<<30, append(make([]int64, 200000), 1<<30, 0))), ApplyOptions{}, nil},
		{"T23 checksum", bytes.NewReader(badSum), ApplyOptions{}, errs.InvalidArgument},
		{"T24 padding without end", io.MultiReader(bytes.NewReader(layer(t, file("f", "x"))), fill(0)), ApplyOptions{}, errs.ResourceExhausted},
		{"T25 too many entries", repeated(t, 1<<30, func(int) []byte { return one }), ApplyOptions{MaxEntries: 1000}, errs.ResourceExhausted},
		{"too many bytes", bytes.NewReader(layer(t, file("f", "12345"))), ApplyOptions{MaxBytes: 4}, errs.ResourceExhausted},
		{"too many attributes", bytes.NewReader(layer(t, file("f", "").xattr("user.x", strings.Repeat("v", 60000)).xattr("user.y", strings.Repeat("v", 60000)))), ApplyOptions{MaxXattrBytes: 100000}, errs.ResourceExhausted},
		{"too many implied directories", repeated(t, 1<<30, func(i int) []byte { return block(t, file(fmt.Sprintf("%d/x", i), "")) }), ApplyOptions{MaxUnresolved: 10000}, errs.ResourceExhausted},
	}
	for cut := 1; cut < len(small)/512; cut++ {
		want := error(errs.InvalidArgument)
		if cut == 2 {
			want = nil // between headers: an archive without end marks
		}
		cases = append(cases, struct {
			name string
			r    io.Reader
			o    ApplyOptions
			want error
		}{fmt.Sprintf("T23 cut after %d blocks", cut), bytes.NewReader(small[:cut*512]), ApplyOptions{}, want})
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			g := newGround(t)
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			start := time.Now()
			_, err := Apply(t.Context(), g.root, c.r, c.o)
			runtime.ReadMemStats(&after)
			g.check()
			if !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
			if d := time.Since(start); d > 10*time.Second {
				t.Errorf("took %v", d)
			}
			if grown := int64(after.HeapSys) - int64(before.HeapSys); grown > 64<<20 {
				t.Errorf("heap grew by %d MiB", grown>>20)
			}
		})
	}
}

type fill byte

func (f fill) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(f)
	}
	return len(p), nil
}

// sparseLayer is a layer of one sparse file in PAX form 1.0: parts are pairs of
// offset and length, and all data is "x".
func sparseLayer(size int64, parts []int64) []byte {
	var buf bytes.Buffer
	var list strings.Builder
	fmt.Fprintf(&list, "%d\n", len(parts)/2)
	var data int64
	for i, p := range parts {
		fmt.Fprintf(&list, "%d\n", p)
		if i%2 == 1 {
			data += p
		}
	}
	m := list.String()
	m += strings.Repeat("\x00", (512-len(m)%512)%512)
	rec := func(k, v string) string {
		n := len(k) + len(v) + 3
		n += len(fmt.Sprint(n))
		if len(fmt.Sprint(n))+len(k)+len(v)+3 != n {
			n++
		}
		return fmt.Sprintf("%d %s=%s\n", n, k, v)
	}
	pax := rec("GNU.sparse.major", "1") + rec("GNU.sparse.minor", "0") + rec("GNU.sparse.name", "sparse") + rec("GNU.sparse.realsize", fmt.Sprint(size))
	header := func(name string, flag byte, n int) {
		h := make([]byte, 512)
		copy(h, name)
		copy(h[100:], "0000644\x000000000\x000000000\x00")
		copy(h[124:], fmt.Sprintf("%011o\x0000000000000\x00        ", n))
		h[156] = flag
		copy(h[257:], "ustar\x0000")
		sum := 0
		for _, b := range h {
			sum += int(b)
		}
		copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
		buf.Write(h)
	}
	pad := func() { buf.Write(make([]byte, (512-buf.Len()%512)%512)) }
	header("pax", 'x', len(pax))
	buf.WriteString(pax)
	pad()
	header("GNUSparseFile.0/sparse", '0', len(m)+int(data))
	buf.WriteString(m)
	buf.WriteString(strings.Repeat("x", int(data)))
	pad()
	buf.Write(make([]byte, 1024))
	return buf.Bytes()
}

func TestSparse(t *testing.T) {
	g := newGround(t)
	must(t, g.apply(spec.WhiteoutOverlay, sparseLayer(64<<20, []int64{0, 10, 32 << 20, 4096, 64 << 20, 0})))
	st := g.stat("sparse")
	if st.Size != 64<<20 || st.Blocks*512 > 1<<20 {
		t.Errorf("size %d, on disk %d", st.Size, st.Blocks*512)
	}
	data := g.text("sparse")
	if strings.Count(data, "x") != 10+4096 || data[:10] != "xxxxxxxxxx" || data[32<<20] != 'x' || data[20] != 0 {
		t.Error("wrong contents")
	}
}

// TestOpaqueStorm is GHSA-rp3h-jf77-q9p4: each mark of an opaque directory may
// cost only once, in both styles.
func TestOpaqueStorm(t *testing.T) {
	storm := func(n int) []byte {
		var in []ent
		for i := range n {
			in = append(in, file(fmt.Sprintf("d/f%d", i), ""))
		}
		for i := range n {
			in = append(in, file("d/.wh..wh..opq", ""))
			if i%10 == 0 {
				in = append(in, file(strings.Repeat("s/", i%200+1)+".wh..wh..opq", ""))
			}
		}
		return layer(t, in...)
	}
	dir, err := os.MkdirTemp("/dev/shm", "berth-storm-") // the disk's own times are not asked for here
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	for _, style := range []spec.Whiteout{spec.WhiteoutOverlay, spec.WhiteoutRemove} {
		took := func(n int) time.Duration {
			data := storm(n)
			best := time.Hour
			for i := range 3 {
				root := filepath.Join(dir, fmt.Sprintf("%d-%d-%d", style, n, i))
				must(t, os.Mkdir(root, 0o755))
				start := time.Now()
				_, err := Apply(t.Context(), root, bytes.NewReader(data), ApplyOptions{Whiteout: style})
				must(t, err)
				best = min(best, time.Since(start))
			}
			return best
		}
		took(100)
		one, four := took(5000), took(20000)
		t.Logf("style %d: 5000 files and marks %v, 20000 %v", style, one, four)
		if four > one*8 || four > 5*time.Second { // walking each time would be 16
			t.Errorf("style %d: four times the input takes %.1f times as long (%v)", style, float64(four)/float64(one), four)
		}
	}
}

// TestAlternating is T28: one path of all types in turn.
func TestAlternating(t *testing.T) {
	g := newGround(t)
	var in []ent
	for i := range 5000 {
		in = append(in, []ent{dir("p"), file("p/x", "1"), file("p", "2"), link("p", "../CANARY"), node(tar.TypeFifo, "p", 0, 0), file(".wh.p", "")}[i%6])
	}
	in = append(in, dir("p"), file("p/x", "end"))
	must(t, g.apply(spec.WhiteoutOverlay, layer(t, in...)))
	if got := g.text("p/x"); got != "end" {
		t.Errorf("p/x holds %q", got)
	}
}

// TestManyDirectories has more directories than handles, written to in turns; all
// get their times at the end, and no handle is left.
func TestManyDirectories(t *testing.T) {
	g := newGround(t)
	fds := openFiles(t)
	var in []ent
	for i := range maxHandles * 2 {
		in = append(in, dir(fmt.Sprintf("d%d", i)))
	}
	for round := range 3 {
		for i := range maxHandles * 2 {
			in = append(in, file(fmt.Sprintf("d%d/f%d", i, round), "x"), link(fmt.Sprintf("d%d/l%d", i, round), "x"))
		}
	}
	must(t, g.apply(spec.WhiteoutOverlay, layer(t, in...)))
	for i := range maxHandles * 2 {
		if st := g.stat(fmt.Sprintf("d%d", i)); st.Mtim.Nano() != 1700000000123456789 {
			t.Fatalf("d%d has time %d", i, st.Mtim.Nano())
		}
	}
	if now := openFiles(t); now != fds {
		t.Errorf("%d open files, %d before", now, fds)
	}
}

func openFiles(t *testing.T) int {
	list, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(list)
}

// TestReaderFails: what the reader says is the error, and nothing is left running.
func TestReaderFails(t *testing.T) {
	data := layer(t, file("a", strings.Repeat("x", 300000)), file("b", "y"))
	boom := errors.New("connection reset")
	before := runtime.NumGoroutine()
	for cut := 0; cut < len(data); cut += 10000 {
		_, err := Apply(t.Context(), t.TempDir(), io.MultiReader(bytes.NewReader(data[:cut]), failing{boom}), ApplyOptions{})
		if !errors.Is(err, boom) {
			t.Fatalf("cut at %d: %v", cut, err)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	r, w := io.Pipe()
	context.AfterFunc(ctx, func() { w.CloseWithError(context.Cause(ctx)) })
	go func() {
		_, _ = w.Write(data[:5000])
		cancel(boom)
	}()
	if _, err := Apply(ctx, t.TempDir(), r, ApplyOptions{}); !errors.Is(err, boom) {
		t.Errorf("cancelled: %v", err)
	}
	if now := runtime.NumGoroutine(); now > before+1 {
		t.Errorf("%d goroutines, %d before", now, before)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// TestReadsToTheEnd: a hash of the stream has seen the padding too.
func TestReadsToTheEnd(t *testing.T) {
	data := append(layer(t, file("a", "x")), make([]byte, 20*512)...)
	r := bytes.NewReader(data)
	_, err := Apply(t.Context(), t.TempDir(), r, ApplyOptions{})
	must(t, err)
	if r.Len() != 0 {
		t.Errorf("%d bytes were not read", r.Len())
	}
}

func gzipped1(t testing.TB, data []byte) []byte {
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	_, err := z.Write(data)
	must(t, err)
	must(t, z.Close())
	return buf.Bytes()
}
