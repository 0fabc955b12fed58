package store

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/label"
	"github.com/berthd/berth/store/snapshot"
)

// model is what a store should hold after the same steps: things by name, with what
// each holds on to. Images (i:), containers (k:) and leases (l:) stay by
// themselves; content (c:) and snapshots (s:) only if something reaches them.
type model map[string][]string

func (m model) kind(prefix string) []string {
	var out []string
	for name := range m {
		if strings.HasPrefix(name, prefix) {
			out = append(out, name[2:])
		}
	}
	slices.Sort(out)
	return out
}

func (m model) collect() {
	reached := map[string]bool{}
	var stack []string
	for name := range m {
		if name[0] != 'c' && name[0] != 's' {
			stack = append(stack, name)
		}
	}
	for len(stack) > 0 {
		n := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if !reached[n] {
			reached[n] = true
			stack = append(stack, m[n]...)
		}
	}
	maps.DeleteFunc(m, func(n string, _ []string) bool { return !reached[n] })
}

// walk is one random walk of a store and its model.
type walk struct {
	*fixture
	t    *testing.T
	r    *rand.Rand
	root string
	m    model
	n    int
}

func (w *walk) pick(kind string) (string, bool) {
	all := w.m.kind(kind)
	if len(all) == 0 {
		return "", false
	}
	return all[w.r.IntN(len(all))], true
}

// scope is with one of the leases, or none.
func (w *walk) scope() (Scope, func(string)) {
	lease, ok := w.pick("l:")
	if !ok || w.r.IntN(2) == 0 {
		return ns, func(string) {}
	}
	return Scope{Namespace: ns.Namespace, Lease: lease}, func(n string) { w.m["l:"+lease] = append(w.m["l:"+lease], n) }
}

func (w *walk) update(fn func(*Tx) error) error { return w.In(ns).Update(w.t.Context(), fn) }

func (w *walk) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

var steps = []func(*walk){
	func(w *walk) { // content that points to other content and to a layer
		sc, hold := w.scope()
		labels := map[string]string{}
		var refs []string
		for k := range w.r.IntN(3) {
			if dg, ok := w.pick("c:"); ok {
				labels[label.GCRefContent+"."+strconv.Itoa(k)] = dg
				refs = append(refs, "c:"+dg)
			}
		}
		if sn, ok := w.pick("s:"); ok && w.r.IntN(3) == 0 {
			labels[label.GCRefSnapshot+"dirs"] = sn
			refs = append(refs, "s:"+sn)
		}
		dg := w.put(w.t, sc, fmt.Sprintf("data %d", w.n), labels)
		w.m["c:"+dg.String()] = refs
		hold("c:" + dg.String())
	},
	func(w *walk) { // a name for content, new or moved
		if dg, ok := w.pick("c:"); ok {
			name := "image" + strconv.Itoa(w.r.IntN(5))
			w.must(w.update(func(tx *Tx) error {
				_, err := tx.PutImage(Image{Name: name, Target: descriptor(digest.Digest(dg))})
				return err
			}))
			w.m["i:"+name] = []string{"c:" + dg}
		}
	},
	func(w *walk) {
		if name, ok := w.pick("i:"); ok {
			w.must(w.update(func(tx *Tx) error { return tx.DeleteImage(name, "") }))
			delete(w.m, "i:"+name)
		}
	},
	func(w *walk) { // a layer above another or none
		sc, hold := w.scope()
		name, refs := fmt.Sprintf("layer%d", w.n), []string(nil)
		parent, ok := w.pick("s:")
		if ok && w.r.IntN(3) > 0 {
			refs = []string{"s:" + parent}
		} else {
			parent = ""
		}
		w.layer(w.t, sc, name, parent, nil)
		w.m["s:"+name] = refs
		hold("s:" + name)
	},
	func(w *walk) { // to remove one that others stand on is refused
		if name, ok := w.pick("s:"); ok {
			children := false
			for n, refs := range w.m {
				children = children || n[0] == 's' && slices.Contains(refs, "s:"+name)
			}
			err := w.update(func(tx *Tx) error { return tx.RemoveSnapshot("dirs", name) })
			if children != errs.Is(err, errs.FailedPrecondition) {
				w.t.Fatalf("remove snapshot %s (children: %v): %v", name, children, err)
			}
			if err == nil {
				delete(w.m, "s:"+name)
			}
		}
	},
	func(w *walk) {
		if sn, ok := w.pick("s:"); ok {
			id := fmt.Sprintf("ctr%d", w.n)
			w.must(w.update(func(tx *Tx) error {
				_, err := tx.CreateContainer(Container{ID: id, Runtime: "x.y", Spec: Any{TypeURL: "t", Value: []byte("{}")}, Snapshotter: "dirs", SnapshotKey: sn})
				return err
			}))
			w.m["k:"+id] = []string{"s:" + sn}
		}
	},
	func(w *walk) {
		if id, ok := w.pick("k:"); ok {
			w.must(w.update(func(tx *Tx) error { return tx.DeleteContainer(id) }))
			delete(w.m, "k:"+id)
		}
	},
	func(w *walk) {
		id := fmt.Sprintf("lease%d", w.n)
		w.must(w.update(func(tx *Tx) error { _, err := tx.CreateLease(Lease{ID: id}); return err }))
		w.m["l:"+id] = nil
	},
	func(w *walk) {
		if id, ok := w.pick("l:"); ok && w.r.IntN(2) == 0 {
			w.must(w.update(func(tx *Tx) error { return tx.DeleteLease(id) }))
			delete(w.m, "l:"+id)
		}
	},
	func(w *walk) {
		if id, ok := w.pick("l:"); ok {
			if dg, ok := w.pick("c:"); ok {
				w.must(w.update(func(tx *Tx) error { return tx.AddResource(id, Resource{ResourceContent, dg}) }))
				w.m["l:"+id] = append(w.m["l:"+id], "c:"+dg)
			}
		}
	},
	func(w *walk) { // the daemon is started again
		if w.r.IntN(4) == 0 {
			w.must(w.Close())
			w.fixture = open(w.t, w.root, "boot1")
		}
	},
	func(w *walk) {
		w.collect(w.t)
		w.m.collect()
		w.compare()
	},
}

// compare looks at rows and at what is on disk.
func (w *walk) compare() {
	w.t.Helper()
	have := model{}
	w.must(w.In(ns).View(w.t.Context(), func(tx *Tx) error {
		contents, err := tx.Contents()
		for _, c := range contents {
			have["c:"+c.Digest.String()] = nil
		}
		snapshots, err2 := tx.Snapshots("dirs")
		for _, s := range snapshots {
			have["s:"+s.Name] = nil
			if s.Kind != snapshot.Committed {
				w.t.Errorf("snapshot %s is %s", s.Name, s.Kind)
			}
		}
		images, err3 := tx.Images()
		for _, i := range images {
			have["i:"+i.Name] = nil
		}
		w.must(err)
		w.must(err2)
		return err3
	}))
	for _, kind := range []string{"c:", "s:", "i:"} {
		if got, want := have.kind(kind), w.m.kind(kind); !slices.Equal(got, want) {
			w.t.Fatalf("step %d, %s\n have %v\n want %v", w.n, kind, got, want)
		}
	}
	blobs, err := w.blobs.List()
	w.must(err)
	if len(blobs) != len(w.m.kind("c:")) {
		w.t.Fatalf("step %d: %d blobs on disk, want %d", w.n, len(blobs), len(w.m.kind("c:")))
	}
	dirs, err := os.ReadDir(w.root + "/dirs")
	w.must(err)
	if len(dirs) != len(w.m.kind("s:")) {
		w.t.Fatalf("step %d: %d snapshot directories, want %d", w.n, len(dirs), len(w.m.kind("s:")))
	}
}

// TestModel takes random steps on a store and on a model of it, which must agree
// after every collection. STORE_MODEL_SEED repeats a walk.
func TestModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("STORE_MODEL_SEED"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed = n
	}
	t.Logf("STORE_MODEL_SEED=%d", seed)
	root := t.TempDir()
	w := &walk{fixture: open(t, root, "boot1"), t: t, r: rand.New(rand.NewPCG(seed, 1)), root: root, m: model{}}
	for ; w.n < 1500; w.n++ {
		steps[w.r.IntN(len(steps))](w)
	}
	steps[len(steps)-1](w)
}
