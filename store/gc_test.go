package store

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/base/label"
	"github.com/berthd/berth/store/snapshot"
)

func TestCollectByLabels(t *testing.T) {
	f := open(t, t.TempDir(), "b1")
	past, future := time.Now().Add(-time.Hour).Format(time.RFC3339), time.Now().Add(time.Hour).Format(time.RFC3339)
	leaf := f.put(t, ns, "leaf", nil)
	f.layer(t, ns, "base", "", nil)
	f.layer(t, ns, "top", "base", nil)
	config := f.put(t, ns, "config", map[string]string{label.GCRefSnapshot + "dirs": "top"})
	manifest := f.put(t, ns, "manifest", map[string]string{label.GCRefContent + ".l.0": leaf.String(), label.GCRefContent + ".config": config.String()})
	f.image(t, ns, "keeps", manifest, nil)
	f.put(t, ns, "rooted", map[string]string{label.GCRoot: "x"})
	f.put(t, ns, "until", map[string]string{label.GCExpire: future})
	f.put(t, ns, "was-until", map[string]string{label.GCExpire: past})
	f.put(t, ns, "bref", map[string]string{label.GCBref + "image": "keeps"})
	f.put(t, ns, "bref-dead", map[string]string{label.GCBref + "image": "gone"})
	f.put(t, ns, "garbage", nil)
	f.layer(t, ns, "unused", "base", nil)
	f.image(t, ns, "expired", f.put(t, ns, "of-expired", nil), map[string]string{label.GCExpire: past})
	other := Scope{Namespace: "other"}
	f.put(t, other, "leaf", map[string]string{label.GCRoot: "x"})

	c := f.collect(t)
	if c.Content != 4 || c.Snapshots != 1 || c.Images != 1 {
		t.Errorf("collected %+v", c)
	}
	want := map[string]bool{"leaf": true, "config": true, "manifest": true, "rooted": true, "until": true, "bref": true,
		"was-until": false, "bref-dead": false, "garbage": false, "of-expired": false}
	for data, keep := range want {
		_, err := f.blobs.Size(digest.FromString(data))
		if keep != (err == nil) {
			t.Errorf("blob %q: %v", data, err)
		}
	}
	if got := names(t, f.In(ns)); !strings.HasSuffix(got, "s:base s:top i:keeps") {
		t.Error(got)
	}
	if n, _ := os.ReadDir(filepath.Join(f.root, "dirs")); len(n) != 2 {
		t.Errorf("snapshot directories left: %v", n)
	}
	if c := f.collect(t); c.Total() != 0 {
		t.Errorf("second time %+v", c)
	}
}

// TestEveryKindOfReference: whatever may carry a reference holds what it points to, with
// and without the free suffixes, and lets it go when it goes itself.
func TestEveryKindOfReference(t *testing.T) {
	f := open(t, t.TempDir(), "b1")
	past := time.Now().Add(-time.Hour).Format(time.RFC3339)
	kept := func(name string) string { return f.put(t, ns, name, nil).String() }
	refs := func(from string) map[string]string {
		f.layer(t, ns, "snap-of-"+from, "", nil)
		f.image(t, ns, "image-of-"+from, digest.Digest(kept("target-of-"+from)), map[string]string{label.GCExpire: past})
		return map[string]string{
			label.GCRefContent: kept("plain-" + from), label.GCRefContent + ".m.1": kept("dot-" + from), label.GCRefContent + "/x": kept("slash-" + from),
			label.GCRefSnapshot + "dirs/why": "snap-of-" + from, label.GCRefImage + ".x": "image-of-" + from,
			label.GCRefContent + "X": kept("no-reference-" + from), label.GCRef + "unknown": kept("unknown-" + from),
		}
	}
	spec := Any{TypeURL: "s", Value: []byte("{}")}
	f.put(t, ns, "content", label.Update(refs("content"), map[string]string{label.GCRoot: "x"}))
	f.layer(t, ns, "snapshot", "", label.Update(refs("snapshot"), map[string]string{label.GCRoot: "x"}))
	f.image(t, ns, "image", digest.Digest(kept("target")), refs("image"))
	containers, sandboxes := refs("container"), refs("sandbox")
	err := f.In(ns).Update(t.Context(), func(tx *Tx) error {
		if _, err := tx.CreateContainer(Container{ID: "c", Runtime: "r", Spec: spec, Labels: containers}); err != nil {
			return err
		}
		_, err := tx.CreateSandbox(Sandbox{ID: "s", Runtime: "r", Labels: sandboxes})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	// Back references: to things that live, and to some that do not.
	backs := map[string]string{"container": "c", "content": digest.FromString("content").String(), "image.x": "image", "snapshot.dirs/x": "snapshot"}
	for kind, to := range backs {
		f.put(t, ns, "back-"+kind, map[string]string{label.GCBref + kind: to})
		f.put(t, ns, "lost-"+kind, map[string]string{label.GCBref + kind: to + "x"})
		f.layer(t, ns, "back-"+strings.ReplaceAll(kind, "/", "-"), "", map[string]string{label.GCBref + kind: to})
	}
	f.collect(t)
	there := func(data string) bool {
		_, err := f.blobs.Size(digest.FromString(data))
		return err == nil
	}
	all := names(t, f.In(ns))
	for _, from := range []string{"content", "snapshot", "image", "container", "sandbox"} {
		for _, what := range []string{"plain-", "dot-", "slash-", "target-of-"} {
			if !there(what + from) {
				t.Errorf("%s%s is gone", what, from)
			}
		}
		if there("no-reference-"+from) || there("unknown-"+from) {
			t.Errorf("%s: a label that is no reference holds", from)
		}
		if !strings.Contains(all, "s:snap-of-"+from) || !strings.Contains(all, "i:image-of-"+from) {
			t.Errorf("of %s: %s", from, all)
		}
	}
	for kind := range backs {
		if !there("back-"+kind) || there("lost-"+kind) || !strings.Contains(all, "s:back-"+strings.ReplaceAll(kind, "/", "-")) {
			t.Errorf("back reference to %s: kept %v, of a dead one %v", kind, there("back-"+kind), there("lost-"+kind))
		}
	}
	err = f.In(ns).Update(t.Context(), func(tx *Tx) error {
		_, err := tx.UpdateContent(Content{Digest: digest.FromString("content")}, "labels")
		return errors.Join(err, tx.DeleteContainer("c"), tx.DeleteSandbox("s"), tx.DeleteImage("image", ""), tx.RemoveSnapshot("dirs", "snapshot"))
	})
	if err != nil {
		t.Fatal(err)
	}
	f.collect(t)
	f.collect(t) // what only went with the first
	if got := names(t, f.In(ns)); got != "" {
		t.Errorf("left: %s", got)
	}
}

// TestCollectByCondition: content and expired images live for a snapshot's sake while
// what they say of its use is true.
func TestCollectByCondition(t *testing.T) {
	f := open(t, t.TempDir(), "b1")
	ago := func(d time.Duration) map[string]string {
		return map[string]string{label.GCCondUsedAt: time.Now().Add(-d).Format(time.RFC3339), label.GCRoot: "x"}
	}
	f.layer(t, ns, "fresh", "", ago(time.Hour))
	f.layer(t, ns, "stale", "", ago(48*time.Hour))
	f.layer(t, ns, "unknown", "", map[string]string{label.GCRoot: "x"})
	const key = label.GCCondSnapshot + "dirs"
	want := map[string]bool{}
	for text, keep := range map[string]bool{
		"usedat<24h|fresh": true, "usedat<24h|stale": false, "usedat>24h|stale": true, "usedat>24h|fresh": false, "usedat<24h|unknown": false,
		"usedat>24h,usedat<2h|fresh": true, "usedat<24h|gone": false, "usedat<=24h|fresh": false, "usedat=1h|fresh": false, "usedat<x|fresh": false,
		"other<24h|fresh": false, "usedat<24h": false, "|fresh": false, "": false,
	} {
		want[text] = keep
		f.put(t, ns, text, map[string]string{key: text})
	}
	f.put(t, ns, "suffix", map[string]string{key + "/why": "usedat<24h|fresh"})
	want["suffix"] = true
	past := time.Now().Add(-time.Hour).Format(time.RFC3339)
	f.image(t, ns, "kept", f.put(t, ns, "of-kept", nil), map[string]string{label.GCExpire: past, key: "usedat<24h|fresh"})
	f.image(t, ns, "dropped", f.put(t, ns, "of-dropped", nil), map[string]string{label.GCExpire: past, key: "usedat<24h|stale"})
	want["of-kept"], want["of-dropped"] = true, false
	f.collect(t)
	for data, keep := range want {
		if _, err := f.blobs.Size(digest.FromString(data)); keep != (err == nil) {
			t.Errorf("%q: kept %v, want %v", data, err == nil, keep)
		}
	}
	if got := names(t, f.In(ns)); !strings.Contains(got, "i:kept") || strings.Contains(got, "i:dropped") {
		t.Error(got)
	}
	// The snapshot goes, and with it what it kept.
	if err := f.In(ns).Update(t.Context(), func(tx *Tx) error {
		_, err := tx.UpdateSnapshot(Snapshot{Snapshotter: "dirs", Name: "fresh", Labels: map[string]string{label.GCRoot: ""}}, "labels."+label.GCRoot)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	f.collect(t)
	if got := names(t, f.In(ns)); strings.Contains(got, "i:kept") || strings.Contains(got, "s:fresh") {
		t.Error(got)
	}
}

func TestDeferredCollectionKeepsWhatCameAfter(t *testing.T) {
	f := open(t, t.TempDir(), "b1")
	f.put(t, ns, "before", nil)
	f.Defer()
	f.put(t, ns, "after", nil)
	c, err := f.CollectDeferred(t.Context())
	if err != nil || c.Content != 1 {
		t.Fatalf("%+v, %v: want one blob collected", c, err)
	}
	if _, err := f.blobs.Size(digest.FromString("after")); err != nil {
		t.Error("what came after Defer was collected")
	}
	f.Defer()
	if c, err := f.CollectDeferred(t.Context()); err != nil || c.Content != 1 {
		t.Errorf("%+v, %v: the next one must take the other", c, err)
	}
	f.put(t, ns, "again", nil)
	if c, err := f.Collect(t.Context()); err != nil || c.Content != 1 {
		t.Errorf("%+v, %v: a collection that is waited for takes all", c, err)
	}
}

func TestLeases(t *testing.T) {
	f := open(t, t.TempDir(), "b1")
	mk := func(l Lease) Scope {
		if err := f.In(ns).Update(t.Context(), func(tx *Tx) error { _, err := tx.CreateLease(l); return err }); err != nil {
			t.Fatal(err)
		}
		return Scope{ns.Namespace, l.ID}
	}
	full := mk(Lease{ID: "full"})
	flat := mk(Lease{ID: "flat", Labels: map[string]string{label.GCFlat: "1"}})
	old := mk(Lease{ID: "old", Labels: map[string]string{label.GCExpire: time.Now().Add(-time.Minute).Format(time.RFC3339)}})
	f.layer(t, ns, "b", "", nil)
	f.layer(t, flat, "t", "b", nil)
	child := f.put(t, ns, "child", nil)
	refs := map[string]string{label.GCRefContent: child.String()}
	f.put(t, full, "held", refs)
	child2 := f.put(t, ns, "child2", nil)
	f.put(t, flat, "flat", map[string]string{label.GCRefContent: child2.String()})
	f.put(t, old, "old", nil)
	if c := f.collect(t); c.Content != 2 || c.Snapshots != 0 || c.Leases != 1 {
		t.Fatalf("%+v %s", c, names(t, f.In(ns)))
	}
	for _, id := range []string{"full", "flat"} {
		if err := f.In(ns).Update(t.Context(), func(tx *Tx) error { return tx.DeleteLease(id) }); err != nil {
			t.Fatal(err)
		}
	}
	f.collect(t)
	if got := names(t, f.In(ns)); got != "" {
		t.Fatal(got)
	}
}

func TestOpenIngestsStay(t *testing.T) {
	f := open(t, t.TempDir(), "b1")
	w, err := f.In(ns).Writer(t.Context(), WriterOptions{Ref: "open"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	_, _ = w.Write([]byte("x"))
	if err := f.In(ns).Update(t.Context(), func(tx *Tx) error { return tx.exec(`UPDATE ingest SET expires = 1`) }); err != nil {
		t.Fatal(err)
	}
	f.collect(t)
	if err := w.Commit(t.Context(), CommitOptions{}); err != nil {
		t.Fatal(err)
	}
	if w, err = f.In(ns).Writer(t.Context(), WriterOptions{Ref: "kept"}); err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write([]byte("x"))
	_ = w.Close()
	f.collect(t)
	if l, _ := f.In(ns).Ingests(t.Context()); len(l) != 1 {
		t.Fatal("an ingest that has not expired was collected")
	}
	if err := f.In(ns).Update(t.Context(), func(tx *Tx) error { return tx.exec(`UPDATE ingest SET expires = 1`) }); err != nil {
		t.Fatal(err)
	}
	f.collect(t)
	if l, _ := f.In(ns).Ingests(t.Context()); len(l) != 0 {
		t.Fatal(l)
	}
	if l, _ := f.blobs.Ingests(); len(l) != 0 {
		t.Fatal(l)
	}
}

// TestCollectWhileWriting lets writers make images under leases, as a pull does,
// while collections run one after another: nothing an image needs may go.
func TestCollectWhileWriting(t *testing.T) {
	f := open(t, t.TempDir(), "b1")
	stop := make(chan struct{})
	var wg, gc sync.WaitGroup
	gc.Add(1)
	go func() {
		defer gc.Done()
		for {
			select {
			case <-stop:
				return
			default:
				if _, err := f.Collect(t.Context()); err != nil {
					t.Error(err)
				}
			}
		}
	}()
	for w := range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range 25 {
				sc := Scope{Namespace: fmt.Sprintf("n%d", w%2), Lease: fmt.Sprintf("l%d-%d", w, i)}
				if err := f.In(sc).Update(t.Context(), func(tx *Tx) error { _, err := tx.CreateLease(Lease{ID: sc.Lease}); return err }); err != nil {
					t.Error(err)
					return
				}
				shared := f.put(t, sc, fmt.Sprintf("shared%d", rand.N(3)), nil)
				m := f.put(t, sc, fmt.Sprintf("m%d-%d", w, i), map[string]string{label.GCRefContent + ".l.0": shared.String()})
				if err := f.In(sc).Update(t.Context(), func(tx *Tx) error {
					if _, err := tx.UpdateContent(Content{Digest: m, Labels: map[string]string{label.GCRefContent + ".l.0": shared.String()}}); err != nil {
						return err
					}
					if _, err := tx.PutImage(Image{Name: fmt.Sprintf("i%d", w), Target: descriptor(m)}); err != nil {
						return err
					}
					return tx.DeleteLease(sc.Lease)
				}); err != nil {
					t.Error(err)
					return
				}
				for _, dg := range []digest.Digest{m, shared} {
					b, err := f.In(sc).OpenContent(t.Context(), dg)
					if err != nil {
						t.Errorf("image i%d lost %s: %v", w, dg, err)
						return
					}
					_ = b.Close()
				}
			}
		}()
	}
	wg.Wait()
	close(stop)
	gc.Wait()
}

func TestAfterPowerLoss(t *testing.T) {
	root := t.TempDir()
	f := open(t, root, "boot1")
	f.put(t, ns, "durable", map[string]string{label.GCRoot: "x"})
	later := func(data string) {
		w, err := f.In(ns).Writer(t.Context(), WriterOptions{Ref: data})
		if err != nil {
			t.Fatal(err)
		}
		_, _ = w.Write([]byte(data))
		if err := w.Commit(t.Context(), CommitOptions{Later: true, Labels: map[string]string{label.GCRoot: "x"}}); err != nil {
			t.Fatal(err)
		}
	}
	later("flushed")
	f.layer(t, ns, "flushed", "", nil)
	if err := f.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	later("lost")
	f.layer(t, ns, "lost", "flushed", nil)
	if _, err := f.In(ns).MakeSnapshot(t.Context(), Snapshot{Snapshotter: "dirs", Name: "above", Parent: "lost", Kind: snapshot.Active}); err != nil {
		t.Fatal(err)
	}
	before := names(t, f.In(ns))
	_ = f.Close()

	f = open(t, root, "boot1") // the daemon died, the kernel did not
	if got := names(t, f.In(ns)); got != before {
		t.Fatalf("same boot: %s, want %s", got, before)
	}
	_ = f.Close()
	f = open(t, root, "boot2")
	if got := names(t, f.In(ns)); strings.Contains(got, "lost") || strings.Contains(got, "above") || !strings.Contains(got, "s:flushed") || strings.Count(got, "c:") != 2 {
		t.Fatal(got)
	}
	if err := f.EmptyTrash(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n, _ := os.ReadDir(filepath.Join(root, "dirs")); len(n) != 1 {
		t.Fatalf("directories left: %v", n)
	}
	if l, _ := f.blobs.List(); len(l) != 2 {
		t.Fatalf("blobs left: %v", l)
	}
}

// TestBootFindsFilesWithoutRows: what a crash left between file and row goes, and
// no id is ever given out twice.
func TestBootFindsFilesWithoutRows(t *testing.T) {
	root := t.TempDir()
	f := open(t, root, "b1")
	f.layer(t, ns, "a", "", nil)
	_ = f.Close()
	_ = os.Mkdir(filepath.Join(root, "dirs", "77"), 0o700)
	stray, _ := f.blobs.Path(digest.FromString("stray"))
	_ = os.WriteFile(stray, []byte("stray"), 0o600)
	f = open(t, root, "b1")
	if err := f.EmptyTrash(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.layer(t, ns, "b", "", nil)
	s, err := Get(t.Context(), f.In(ns), func(tx *Tx) (Snapshot, error) { return tx.Snapshot("dirs", "b") })
	if err != nil || s.ID != 78 {
		t.Fatal(s.ID, err)
	}
	if l, _ := f.blobs.List(); len(l) != 0 {
		t.Fatal(l)
	}
	if n, _ := os.ReadDir(filepath.Join(root, "dirs")); len(n) != 2 {
		t.Fatal(n)
	}
}
