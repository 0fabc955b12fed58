package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/label"
	"github.com/berthd/berth/base/spec"
	"github.com/berthd/berth/store/snapshot"
)

// dirs is a driver that makes plain directories.
type dirs struct {
	root string
	fail error
}

func (d dirs) path(id uint64) string               { return filepath.Join(d.root, strconv.FormatUint(id, 10)) }
func (d dirs) Root() string                        { return d.root }
func (d dirs) Capabilities() []snapshot.Capability { return []snapshot.Capability{snapshot.CapRebase} }
func (d dirs) Make(_ context.Context, l snapshot.Layer) error {
	if d.fail != nil {
		return d.fail
	}
	return os.MkdirAll(d.path(l.ID), 0o700)
}
func (d dirs) Mounts(_ context.Context, l snapshot.Layer) ([]spec.Mount, error) {
	return []spec.Mount{{Type: "bind", Source: d.path(l.ID), Options: []string{fmt.Sprint(l.Parents)}}}, nil
}
func (d dirs) Fill(_ context.Context, l snapshot.Layer) (string, spec.Whiteout, bool) {
	return d.path(l.ID), spec.WhiteoutOverlay, true
}
func (d dirs) Tree(id uint64) (string, bool) { return d.path(id), true }
func (d dirs) Seal(context.Context, snapshot.Layer) (snapshot.Usage, error) {
	return snapshot.Usage{Size: 42, Inodes: 1}, nil
}
func (d dirs) Usage(context.Context, snapshot.Layer) (snapshot.Usage, error) {
	return snapshot.Usage{Size: 7}, nil
}
func (d dirs) Remove(_ context.Context, id uint64) error { return os.RemoveAll(d.path(id)) }
func (d dirs) List(context.Context) ([]uint64, error) {
	files, err := os.ReadDir(d.root)
	var out []uint64
	for _, f := range files {
		if n, err := strconv.ParseUint(f.Name(), 10, 64); err == nil {
			out = append(out, n)
		}
	}
	return out, err
}

type fixture struct {
	*Store
	root   string
	boot   string
	events []string
	refs   atomic.Int64
}

func open(t *testing.T, root, boot string) *fixture {
	t.Helper()
	f := &fixture{root: root, boot: boot}
	dir := filepath.Join(root, "dirs")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), Config{Root: root, BootID: boot, Drivers: map[string]snapshot.Driver{"dirs": dirs{root: dir}}, Publish: func(es []Event) {
		for _, e := range es {
			f.events = append(f.events, e.Namespace+e.Topic)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	f.Store = s
	t.Cleanup(func() { _ = s.Close() })
	return f
}

func (f *fixture) put(t *testing.T, sc Scope, data string, labels map[string]string) digest.Digest {
	t.Helper()
	w, err := f.In(sc).Writer(t.Context(), WriterOptions{Ref: fmt.Sprintf("put-%s-%d", data, f.refs.Add(1))})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := w.Write([]byte(data)); err != nil {
		t.Fatal(err)
	}
	dg := digest.FromString(data)
	if err := w.Commit(t.Context(), CommitOptions{Size: int64(len(data)), Expected: dg, Labels: labels}); err != nil && !errs.Is(err, errs.AlreadyExists) {
		t.Fatal(err)
	}
	return dg
}

func (f *fixture) image(t *testing.T, sc Scope, name string, target digest.Digest, labels map[string]string) {
	t.Helper()
	err := f.In(sc).Update(t.Context(), func(tx *Tx) error {
		_, err := tx.CreateImage(Image{Name: name, Labels: labels, Target: descriptor(target)})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) layer(t *testing.T, sc Scope, name, parent string, labels map[string]string) {
	t.Helper()
	v := f.In(sc)
	if _, err := v.MakeSnapshot(t.Context(), Snapshot{Snapshotter: "dirs", Name: "key-" + name, Parent: parent, Kind: snapshot.Active}); err != nil {
		t.Fatal(err)
	}
	if err := v.CommitSnapshot(t.Context(), "dirs", "key-"+name, name, "", labels); err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) collect(t *testing.T) Collected {
	t.Helper()
	c, err := f.Collect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func names(t *testing.T, v Scoped) string {
	t.Helper()
	var out []string
	err := v.View(t.Context(), func(tx *Tx) error {
		c, err := tx.Contents()
		for _, x := range c {
			out = append(out, "c:"+x.Digest.Encoded()[:6])
		}
		s, err2 := tx.Snapshots("dirs")
		for _, x := range s {
			out = append(out, "s:"+x.Name)
		}
		i, err3 := tx.Images()
		for _, x := range i {
			out = append(out, "i:"+x.Name)
		}
		return errors.Join(err, err2, err3)
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(out, " ")
}

func descriptor(dg digest.Digest) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: "x/y", Digest: dg, Size: 1}
}

var ns = Scope{Namespace: "default"}

func TestImages(t *testing.T) {
	f := open(t, t.TempDir(), "b1")
	dg := digest.FromString("x")
	f.image(t, ns, "a", dg, map[string]string{"k": "v", "empty": ""})
	f.image(t, Scope{Namespace: "other"}, "a", dg, nil)
	err := f.In(ns).Update(t.Context(), func(tx *Tx) error {
		_, err := tx.CreateImage(Image{Name: "a", Target: descriptor(dg)})
		return err
	})
	if !errs.Is(err, errs.AlreadyExists) {
		t.Fatal(err)
	}
	got, err := Set(t.Context(), f.In(ns), func(tx *Tx) (Image, error) {
		return tx.UpdateImage(Image{Name: "a", Labels: map[string]string{"b.c/d": "1"}}, "labels.b.c/d", "labels.k")
	})
	if err != nil || fmt.Sprint(got.Labels) != "map[b.c/d:1]" {
		t.Fatal(got.Labels, err)
	}
	if _, err := Set(t.Context(), f.In(ns), func(tx *Tx) (Image, error) { return tx.UpdateImage(Image{Name: "a"}, "size") }); !errs.Is(err, errs.InvalidArgument) {
		t.Fatal(err)
	}
	l, err := Get(t.Context(), f.In(ns), func(tx *Tx) ([]Image, error) {
		return tx.Images(`labels."b.c/d"==1,target.digest~=sha256`)
	})
	if err != nil || len(l) != 1 {
		t.Fatal(l, err)
	}
	err = f.In(ns).Update(t.Context(), func(tx *Tx) error { return tx.DeleteImage("a", digest.FromString("moved")) })
	if !errs.Is(err, errs.NotFound) {
		t.Fatal(err)
	}
	if err = f.In(ns).Update(t.Context(), func(tx *Tx) error { return tx.DeleteImage("a", dg) }); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(f.events, " "); got != "default/images/create other/images/create default/images/update default/images/delete" {
		t.Fatal(got)
	}
}

func TestFailureTakesBackOnlyItsOwn(t *testing.T) {
	f := open(t, t.TempDir(), "b1")
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			err := f.In(ns).Update(t.Context(), func(tx *Tx) error {
				if _, err := tx.CreateLease(Lease{ID: fmt.Sprintf("l%d", i)}); err != nil {
					return err
				}
				switch i % 4 {
				case 1:
					return errors.New("no")
				case 2:
					panic("boom")
				}
				return nil
			})
			if (i%4 == 1 || i%4 == 2) != (err != nil) {
				t.Errorf("%d: %v", i, err)
			}
		}()
	}
	wg.Wait()
	l, err := Get(t.Context(), f.In(ns), func(tx *Tx) ([]Lease, error) { return tx.Leases() })
	if err != nil || len(l) != 100 {
		t.Fatal(len(l), err)
	}
}

func TestNamespaces(t *testing.T) {
	f := open(t, t.TempDir(), "b1")
	f.image(t, Scope{Namespace: "implicit"}, "a", digest.FromString("x"), nil)
	all := f.In(Scope{})
	if err := all.Update(t.Context(), func(tx *Tx) error {
		return tx.CreateNamespace(Namespace{"made", map[string]string{"a": "b"}})
	}); err != nil {
		t.Fatal(err)
	}
	l, err := Get(t.Context(), all, func(tx *Tx) ([]Namespace, error) { return tx.Namespaces() })
	if err != nil || fmt.Sprint(l) != "[{implicit map[]} {made map[a:b]}]" {
		t.Fatal(l, err)
	}
	if n, err := Get(t.Context(), all, func(tx *Tx) (Namespace, error) { return tx.NamespaceRow("nobody") }); err != nil || n.Name != "nobody" {
		t.Fatal(n, err)
	}
	if err := all.Update(t.Context(), func(tx *Tx) error { return tx.DeleteNamespace("implicit") }); !errs.Is(err, errs.FailedPrecondition) {
		t.Fatal(err)
	}
	if err := all.Update(t.Context(), func(tx *Tx) error { return tx.DeleteNamespace("made") }); err != nil {
		t.Fatal(err)
	}
	err = f.In(Scope{Namespace: "bad/name"}).Update(t.Context(), func(tx *Tx) error { _, err := tx.CreateLease(Lease{}); return err })
	if !errs.Is(err, errs.InvalidArgument) {
		t.Fatal(err)
	}
}

func TestContentWriter(t *testing.T) {
	f := open(t, t.TempDir(), "b1")
	v := f.In(ns)
	w, err := v.Writer(t.Context(), WriterOptions{Ref: "r", Total: 5})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Writer(t.Context(), WriterOptions{Ref: "r"}); !errs.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "locked") {
		t.Fatal(err)
	}
	_, _ = w.Write([]byte("hel"))
	_ = w.Close()
	if w, err = v.Writer(t.Context(), WriterOptions{Ref: "r", Total: 5}); err != nil || w.Offset() != 3 {
		t.Fatal(w.Offset(), err)
	}
	_, _ = w.Write([]byte("lo"))
	for _, o := range []CommitOptions{{Size: 4}, {Expected: digest.FromString("x")}} {
		if err := w.Commit(t.Context(), o); !errs.Is(err, errs.FailedPrecondition) {
			t.Fatal(err)
		}
	}
	dg := digest.FromString("hello")
	if err := w.Commit(t.Context(), CommitOptions{Size: 5, Expected: dg, Labels: map[string]string{"a": "b"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Writer(t.Context(), WriterOptions{Ref: "again", Expected: dg}); !errs.Is(err, errs.AlreadyExists) {
		t.Fatal(err)
	}
	// Another namespace does not see it, and gets it without sending a byte.
	o := f.In(Scope{Namespace: "other"})
	if _, err := o.OpenContent(t.Context(), dg); !errs.Is(err, errs.NotFound) {
		t.Fatal(err)
	}
	if w, err = o.Writer(t.Context(), WriterOptions{Ref: "x", Expected: dg}); err != nil || w.Offset() != 5 {
		t.Fatal(err)
	}
	if err := w.Commit(t.Context(), CommitOptions{Expected: dg}); err != nil {
		t.Fatal(err)
	}
	b, err := o.OpenContent(t.Context(), dg)
	if err != nil || b.Size != 5 {
		t.Fatal(err)
	}
	_ = b.Close()
	// A lost file may be written again.
	p, _ := f.blobs.Path(dg)
	_ = os.Remove(p)
	f.put(t, ns, "hello", nil)
	if b, err = o.OpenContent(t.Context(), dg); err != nil {
		t.Fatal("not healed", err)
	}
	_ = b.Close()
	// Deleted in one, it stays for the other.
	if err := v.Update(t.Context(), func(tx *Tx) error { return tx.DeleteContent(dg) }); err != nil {
		t.Fatal(err)
	}
	if err := f.EmptyTrash(t.Context()); err != nil {
		t.Fatal(err)
	}
	if b, err = o.OpenContent(t.Context(), dg); err != nil {
		t.Fatal(err)
	}
	_ = b.Close()
}

func TestAbortAndList(t *testing.T) {
	f := open(t, t.TempDir(), "b1")
	v := f.In(ns)
	w, _ := v.Writer(t.Context(), WriterOptions{Ref: "r", Total: 9})
	_, _ = w.Write([]byte("abc"))
	if err := v.Abort(t.Context(), "r"); !errs.Is(err, errs.Unavailable) {
		t.Fatal(err)
	}
	l, err := v.Ingests(t.Context())
	if err != nil || len(l) != 1 || l[0].Offset != 3 || l[0].Total != 9 {
		t.Fatal(l, err)
	}
	_ = w.Close()
	if err := v.Abort(t.Context(), "r"); err != nil {
		t.Fatal(err)
	}
	if err := v.Abort(t.Context(), "r"); !errs.Is(err, errs.NotFound) {
		t.Fatal(err)
	}
	if ids, _ := f.blobs.Ingests(); len(ids) != 0 {
		t.Fatal(ids)
	}
}

func TestSnapshots(t *testing.T) {
	f := open(t, t.TempDir(), "b1")
	v := f.In(ns)
	f.layer(t, ns, "base", "", nil)
	f.layer(t, ns, "top", "base", map[string]string{"a": "b"})
	mk := func(name, parent string) error {
		_, err := v.MakeSnapshot(t.Context(), Snapshot{Snapshotter: "dirs", Name: name, Parent: parent, Kind: snapshot.Active})
		return err
	}
	if err := mk("c", "top"); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		err  error
		want error
	}{
		"same key":        {mk("c", ""), errs.AlreadyExists},
		"committed name":  {mk("top", ""), errs.AlreadyExists},
		"missing parent":  {mk("d", "none"), errs.NotFound},
		"active parent":   {mk("d", "c"), errs.InvalidArgument},
		"empty key":       {mk("", ""), errs.InvalidArgument},
		"remove parent":   {v.Update(t.Context(), func(tx *Tx) error { return tx.RemoveSnapshot("dirs", "base") }), errs.FailedPrecondition},
		"commit to taken": {v.CommitSnapshot(t.Context(), "dirs", "c", "base", "", nil), errs.AlreadyExists},
	} {
		if !errs.Is(c.err, c.want) {
			t.Errorf("%s: %v", name, c.err)
		}
	}
	if _, err := v.SnapshotMounts(t.Context(), "dirs", "top"); !errs.Is(err, errs.FailedPrecondition) {
		t.Error(err)
	}
	m, err := v.SnapshotMounts(t.Context(), "dirs", "c")
	if err != nil || m[0].Options[0] != "[2 1]" {
		t.Error(m, err)
	}
	// Parallel unpack: made without a parent, given one at commit.
	if err := mk("loose", ""); err != nil {
		t.Fatal(err)
	}
	if err := v.CommitSnapshot(t.Context(), "dirs", "loose", "above", "top", nil); err != nil {
		t.Fatal(err)
	}
	s, err := Get(t.Context(), v, func(tx *Tx) (Snapshot, error) { return tx.Snapshot("dirs", "above") })
	if err != nil || s.Parent != "top" || s.Size != 42 || s.Kind != snapshot.Committed {
		t.Error(s, err)
	}
	if _, err := f.In(ns).MakeSnapshot(t.Context(), Snapshot{Snapshotter: "none", Name: "x"}); !errs.Is(err, errs.InvalidArgument) {
		t.Error(err)
	}
	if err := mk("ref", ""); err != nil {
		t.Fatal(err)
	}
	_, err = v.MakeSnapshot(t.Context(), Snapshot{Snapshotter: "dirs", Name: "x", Kind: snapshot.Active, Labels: map[string]string{label.SnapshotRef: "top"}})
	if !errs.Is(err, errs.AlreadyExists) {
		t.Error(err)
	}
}

func TestFailedDriverLeavesNothing(t *testing.T) {
	f := open(t, t.TempDir(), "b1")
	f.drivers["dirs"] = dirs{root: filepath.Join(f.root, "dirs"), fail: errors.New("no space")}
	_, err := f.In(ns).MakeSnapshot(t.Context(), Snapshot{Snapshotter: "dirs", Name: "a", Kind: snapshot.Active})
	if err == nil || !strings.Contains(err.Error(), "no space") {
		t.Fatal(err)
	}
	f.drivers["dirs"] = dirs{root: filepath.Join(f.root, "dirs")}
	f.layer(t, ns, "a", "", nil)
	if got := names(t, f.In(ns)); got != "s:a" {
		t.Fatal(got)
	}
}

func TestSecondDaemonIsRefused(t *testing.T) {
	root := t.TempDir()
	open(t, root, "b1")
	_, err := Open(t.Context(), Config{Root: root, BootID: "b1"})
	if !errs.Is(err, errs.FailedPrecondition) || !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) {
		t.Fatal(err)
	}
}

func TestNewerDatabaseIsRefused(t *testing.T) {
	root := t.TempDir()
	f := open(t, root, "b1")
	if err := f.In(Scope{}).Update(t.Context(), func(tx *Tx) error { return tx.exec(`UPDATE meta SET value = '999' WHERE key = 'format'`) }); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	if _, err := Open(t.Context(), Config{Root: root, BootID: "b1"}); !errs.Is(err, errs.FailedPrecondition) {
		t.Fatal(err)
	}
}

func TestCommitSpeed(t *testing.T) {
	f := open(t, t.TempDir(), "b1")
	start := time.Now()
	for i := range 500 {
		if err := f.In(ns).Update(t.Context(), func(tx *Tx) error { _, err := tx.CreateLease(Lease{ID: fmt.Sprintf("l%d", i)}); return err }); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%v a commit", time.Since(start)/500)
}

// TestPromiseFlushes: a promise writes to the log even if it changes no row of its
// own, for without that SQLite would flush nothing of what came before.
func TestPromiseFlushes(t *testing.T) {
	root := t.TempDir()
	f := open(t, root, "b1")
	f.put(t, Scope{Namespace: "n"}, "x", nil)
	size := func() int64 {
		st, err := os.Stat(filepath.Join(root, "berth.db-wal"))
		if err != nil {
			t.Fatal(err)
		}
		return st.Size()
	}
	before := size()
	if err := f.In(Scope{}).Update(t.Context(), func(*Tx) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if got := size(); got != before {
		t.Fatalf("an update that changes nothing wrote %d bytes", got-before)
	}
	if err := f.In(Scope{}).Promise(t.Context(), func(*Tx) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if size() == before {
		t.Fatal("a promise wrote nothing, so it flushed nothing")
	}
}

func TestExpectOfPresentContentDropsTheIngest(t *testing.T) {
	f := open(t, t.TempDir(), "b1")
	dg := f.put(t, ns, "known", nil)
	v := f.In(ns)
	w, err := v.Writer(t.Context(), WriterOptions{Ref: "late"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("known")); err != nil {
		t.Fatal(err)
	}
	if err := w.Expect(t.Context(), 5, dg); !errs.Is(err, errs.AlreadyExists) {
		t.Errorf("%v", err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if all, err := v.Ingests(t.Context()); err != nil || len(all) > 0 {
		t.Errorf("ingests left: %v, %v", all, err)
	}
	if files, err := f.blobs.Ingests(); err != nil || len(files) > 0 {
		t.Errorf("files left: %v, %v", files, err)
	}
}
