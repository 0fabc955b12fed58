package store

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/base/label"
	"github.com/berthd/berth/store/snapshot"
)

// filled makes a store with some hundreds of rows and closes it.
func filled(t *testing.T, root string) {
	t.Helper()
	f := open(t, root, "b1")
	for i := range 40 {
		parent := ""
		if i%4 > 0 {
			parent = fmt.Sprint("layer", i-1)
		}
		f.layer(t, ns, fmt.Sprint("layer", i), parent, map[string]string{label.GCRoot: "x"})
	}
	for i := range 100 {
		dg := f.put(t, ns, fmt.Sprint("blob", i), nil)
		f.image(t, ns, fmt.Sprint("image", i), dg, map[string]string{"some": strings.Repeat("label ", 20)})
	}
	err := f.In(ns).Update(t.Context(), func(tx *Tx) error {
		for i := range 100 {
			c := Container{ID: fmt.Sprint("c", i), Runtime: "r", Spec: Any{TypeURL: "s", Value: bytes.Repeat([]byte("spec"), 300)}}
			if _, err := tx.CreateContainer(c); err != nil {
				return err
			}
			if _, err := tx.CreateTask(Task{ID: c.ID, Runtime: "r"}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestDamage breaks the database in many ways: the store always opens, keeps what can
// be read, works, and says what happened.
func TestDamage(t *testing.T) {
	root := t.TempDir()
	filled(t, root)
	good, err := os.ReadFile(filepath.Join(root, "berth.db"))
	if err != nil {
		t.Fatal(err)
	}
	const page, each = 4096, 4
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 1))
	t.Logf("seed %d", seed)
	pages := len(good) / page
	ways := map[string]func([]byte) []byte{
		"a page of zeroes": func(b []byte) []byte { clear(b[r.IntN(pages)*page:][:page]); return b },
		"flipped bytes": func(b []byte) []byte {
			for range 50 {
				b[r.IntN(len(b))] ^= byte(1 + r.IntN(255))
			}
			return b
		},
		"a page of noise": func(b []byte) []byte {
			p := b[r.IntN(pages)*page:][:page]
			for i := range p {
				p[i] = byte(r.IntN(256))
			}
			return b
		},
		"cut in a page":    func(b []byte) []byte { return b[:1+r.IntN(len(b)-1)] },
		"cut after a page": func(b []byte) []byte { return b[:page*(1+r.IntN(pages-1))] },
		"the first page":   func(b []byte) []byte { clear(b[:page]); return b },
		"pages exchanged": func(b []byte) []byte {
			i, j := r.IntN(pages), r.IntN(pages)
			x := bytes.Clone(b[i*page:][:page])
			copy(b[i*page:][:page], b[j*page:][:page])
			copy(b[j*page:], x)
			return b
		},
		"empty":             func([]byte) []byte { return nil },
		"something else":    func([]byte) []byte { return bytes.Repeat([]byte("not a database\n"), 1000) },
		"a header, no more": func(b []byte) []byte { return b[:100] },
	}
	damaged, kept := 0, 0
	for name, spoil := range ways {
		for i := range each {
			broken := filepath.Join(t.TempDir(), "r")
			if err := os.CopyFS(broken, os.DirFS(root)); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(broken, "berth.db"), spoil(bytes.Clone(good)), 0o600); err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			s, err := Open(t.Context(), Config{Root: broken, BootID: "b1", Drivers: map[string]snapshot.Driver{"dirs": dirs{root: filepath.Join(broken, "dirs")}}})
			if err != nil {
				t.Fatalf("%s %d: %v", name, i, err)
			}
			if took := time.Since(begin); took > 5*time.Second {
				t.Errorf("%s %d: %s to open", name, i, took)
			}
			d, err := s.Damage(t.Context())
			if err != nil {
				t.Fatalf("%s %d: %v", name, i, err)
			}
			if d != nil {
				damaged++
				kept += d.Kept["container"]
				if _, err := os.Stat(filepath.Join(d.Copy, "berth.db")); err != nil {
					t.Errorf("%s %d: the damaged file is not kept: %v", name, i, err)
				}
			}
			err = s.In(ns).Update(t.Context(), func(tx *Tx) error {
				_, err := tx.CreateContainer(Container{ID: "new", Runtime: "r", Spec: Any{TypeURL: "s", Value: []byte("x")}})
				return err
			})
			if err != nil {
				t.Errorf("%s %d: it does not work: %v", name, i, err)
			}
			if _, err := s.Collect(t.Context()); err != nil {
				t.Errorf("%s %d: collect: %v", name, i, err)
			}
			if err := s.Close(); err != nil {
				t.Errorf("%s %d: %v", name, i, err)
			}
			if err := os.RemoveAll(broken); err != nil {
				t.Fatal(err)
			}
		}
	}
	if damaged < 15 || kept < damaged*10 {
		t.Errorf("%d databases were found damaged, %d containers in them were kept", damaged, kept)
	}
	t.Logf("%d of %d databases were found damaged, %d containers a database were kept on average", damaged, each*len(ways), kept/max(damaged, 1))
}

// TestSetAside: rows that cannot be decoded are out of the way, kept, and reported.
func TestSetAside(t *testing.T) {
	root := t.TempDir()
	filled(t, root)
	f := open(t, root, "b1")
	err := f.In(ns).Update(t.Context(), func(tx *Tx) error {
		for _, q := range []string{
			`UPDATE task SET body = '{"vers' WHERE id = 'c1'`, `UPDATE container SET labels = '[]' WHERE id = 'c2'`,
			`UPDATE image SET labels = '' WHERE name = 'image3'`, `UPDATE snapshot SET labels = 'x' WHERE name = 'layer0'`,
		} {
			if err := tx.exec(q); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	f = open(t, root, "b1")
	all, err := f.Asides(t.Context())
	if err != nil || len(all) != 4 {
		t.Fatalf("%v %v", all, err)
	}
	found := map[string]Aside{}
	for _, a := range all {
		found[a.Table+" "+a.ID] = a
	}
	if a := found["task c1"]; a.Namespace != ns.Namespace || !strings.Contains(a.Row, `{\"vers`) || !strings.Contains(a.Reason, "body") {
		t.Errorf("%+v", a)
	}
	for _, what := range []string{"container c2", "image image3", "snapshot layer0"} {
		if found[what].Table == "" {
			t.Errorf("%s is not set aside", what)
		}
	}
	err = f.In(ns).View(t.Context(), func(tx *Tx) error {
		tasks, err := tx.AllTasks()
		if err != nil || len(tasks) != 99 {
			t.Errorf("%d tasks, %v", len(tasks), err)
		}
		_, err = tx.Snapshot("dirs", "layer1")
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if err := f.ForgetAsides(t.Context()); err != nil {
		t.Fatal(err)
	}
	if all, err := f.Asides(t.Context()); err != nil || len(all) > 0 {
		t.Error(all, err)
	}
}
