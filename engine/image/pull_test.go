package image

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/imageref"
	"github.com/berthd/berth/base/label"
	"github.com/berthd/berth/engine/gc"
	"github.com/berthd/berth/engine/image/registry"
	"github.com/berthd/berth/engine/image/registry/registrytest"
	"github.com/berthd/berth/host/mount"
	"github.com/berthd/berth/store"
	"github.com/berthd/berth/store/snapshot"
	"github.com/berthd/berth/store/snapshot/native"
	"github.com/berthd/berth/store/snapshot/overlay"
)

// place is a store with its drivers, a registry, and images between them.
type place struct {
	*Images
	t    *testing.T
	root string
	reg  *registrytest.Registry
	gc   *gc.Collector
}

var (
	ns     = store.Scope{Namespace: "default"}
	forAll = []Target{{Snapshotter: "overlayfs"}}
)

func newPlace(t *testing.T) *place {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root: it makes device nodes and mounts")
	}
	root, log := t.TempDir(), slog.New(slog.DiscardHandler)
	o, err := overlay.New(filepath.Join(root, "overlayfs"))
	if err != nil {
		t.Fatal(err)
	}
	n, err := native.New(filepath.Join(root, "native"))
	if err != nil {
		t.Fatal(err)
	}
	st, err := store.Open(t.Context(), store.Config{Root: root, Drivers: map[string]snapshot.Driver{"overlayfs": o, "native": n}, BootID: "b", Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	p := &place{t: t, root: root, reg: registrytest.Start(t, registrytest.Options{}), gc: gc.New(gc.Config{}, st, log)}
	p.Images = New(Config{Store: st, Registry: registry.New(registry.Config{}), GC: p.gc, Snapshotter: "overlayfs", Log: log})
	return p
}

// pull pulls a tag of the registry's library/app.
func (p *place) pull(tag string, unpack ...Target) (store.Image, error) {
	p.t.Helper()
	ref, err := imageref.Parse(p.reg.Host + "/library/app:" + tag)
	if err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(p.t.Context(), time.Minute)
	defer cancel()
	return p.Pull(ctx, p.store.In(ns), PullRequest{Ref: ref, Choice: HostChoice(), Unpack: unpack})
}

// tree reads what an image's top layer shows: names, with contents of files.
func (p *place) tree(img registrytest.Built, sn string) map[string]string {
	p.t.Helper()
	chain := chainIDs(img.DiffIDs)
	v := p.store.In(ns)
	key := fmt.Sprint("look-", time.Now().UnixNano())
	mounts, err := v.MakeSnapshot(p.t.Context(), store.Snapshot{Snapshotter: sn, Name: key, Kind: snapshot.View, Parent: chain[len(chain)-1].String()})
	if err != nil {
		p.t.Fatal(err)
	}
	out := map[string]string{}
	err = mount.Temp(p.t.Context(), mounts, func(root string) error {
		return filepath.WalkDir(root, func(f string, d fs.DirEntry, err error) error {
			if err != nil || f == root {
				return err
			}
			rel := strings.TrimPrefix(f, root+"/")
			if !d.Type().IsRegular() {
				out[rel] = d.Type().String()
				return nil
			}
			data, err := os.ReadFile(f)
			out[rel] = string(data)
			return err
		})
	})
	if err != nil {
		p.t.Fatal(err)
	}
	if err := p.gc.Remove(p.t.Context(), v, true, func(tx *store.Tx) error { return tx.RemoveSnapshot(sn, key) }); err != nil {
		p.t.Fatal(err)
	}
	return out
}

// nothing checks that neither rows nor files are left.
func (p *place) nothing() {
	p.t.Helper()
	if _, err := p.gc.Collect(p.t.Context()); err != nil {
		p.t.Fatal(err)
	}
	err := p.store.In(ns).View(p.t.Context(), func(tx *store.Tx) error {
		images, err := tx.Images()
		if err != nil {
			return err
		}
		contents, err := tx.Contents()
		if err != nil {
			return err
		}
		snapshots, err := tx.Snapshots("overlayfs")
		if err != nil {
			return err
		}
		if n := len(images) + len(contents) + len(snapshots); n > 0 {
			p.t.Errorf("left: images %v, content %v, snapshots %v", images, contents, snapshots)
		}
		return nil
	})
	if err != nil {
		p.t.Error(err)
	}
	blobs, err := p.store.Blobs().List()
	if err != nil || len(blobs) > 0 {
		p.t.Errorf("blobs left: %v, %v", blobs, err)
	}
	dirs, err := filepath.Glob(filepath.Join(p.root, "overlayfs", "snapshots", "*"))
	if err != nil || len(dirs) > 0 {
		p.t.Errorf("directories left: %v, %v", dirs, err)
	}
}

// app is an image of three layers, each with its own compression.
func app() registrytest.Built {
	return registrytest.Build(registrytest.Image{Layers: []registrytest.Layer{
		{Files: []registrytest.File{{Name: "etc/"}, {Name: "etc/a", Body: "one"}, {Name: "etc/b", Body: "two"}, {Name: "bin/"}, {Name: "bin/sh", Body: "shell", Mode: 0o4755}}},
		{Files: []registrytest.File{{Name: "etc/.wh.b"}, {Name: "etc/a", Body: "changed"}}, Compression: registrytest.Zstd},
		{Files: []registrytest.File{{Name: "var/log/x", Body: strings.Repeat("log ", 5000)}}, Compression: registrytest.Plain},
	}})
}

var appTree = map[string]string{
	"etc": "d---------", "etc/a": "changed", "bin": "d---------", "bin/sh": "shell",
	"var": "d---------", "var/log": "d---------", "var/log/x": strings.Repeat("log ", 5000),
}

func (p *place) isApp(img registrytest.Built, sn string) {
	p.t.Helper()
	got := p.tree(img, sn)
	if fmt.Sprint(got) != fmt.Sprint(appTree) {
		p.t.Errorf("%s: the tree is %.300v, want %.300v", sn, got, appTree)
	}
}

func TestPull(t *testing.T) {
	p := newPlace(t)
	img := app()
	p.reg.Push("library/app", "1", img)
	p.reg.Push("library/app", "all", registrytest.Index(img, registrytest.Build(registrytest.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: "s390x"}, Layers: []registrytest.Layer{{Files: []registrytest.File{{Name: "other", Body: "x"}}}},
	})))
	docker := registrytest.Build(registrytest.Image{Docker: true, Layers: []registrytest.Layer{{Files: []registrytest.File{{Name: "f", Body: "docker"}}}}})
	p.reg.Push("library/app", "docker", docker)
	im, err := p.pull("1", Target{Snapshotter: "overlayfs"}, Target{Snapshotter: "native"})
	if err != nil {
		t.Fatal(err)
	}
	if im.Target.Digest != img.Descriptor.Digest || im.Name != p.reg.Host+"/library/app:1" {
		t.Errorf("image %+v", im)
	}
	p.isApp(img, "overlayfs")
	p.isApp(img, "native")
	err = p.store.In(ns).View(t.Context(), func(tx *store.Tx) error {
		for n, l := range img.Layers {
			c, err := tx.Content(l.Digest)
			if err != nil {
				return err
			}
			if c.Labels[label.Uncompressed] != img.DiffIDs[n].String() || c.Labels[label.Source(p.reg.Host)] != "library/app" {
				t.Errorf("layer %d: labels %v", n, c.Labels)
			}
		}
		c, err := tx.Content(img.Descriptor.Digest)
		if c.Labels[label.GCRefContent+".l.2"] != img.Layers[2].Digest.String() || c.Labels[label.GCRefContent+".config"] != img.Config.Digest.String() {
			t.Errorf("manifest: labels %v", c.Labels)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	// An index: only what this machine can run is fetched.
	p.reg.Reset()
	if _, err := p.pull("all", forAll...); err != nil {
		t.Fatal(err)
	}
	for _, q := range p.reg.Requests() {
		if strings.Contains(q.Path, "/blobs/") {
			t.Errorf("%s %s: everything was there", q.Method, q.Path)
		}
	}
	if _, err := p.pull("docker", forAll...); err != nil {
		t.Fatal(err)
	}
	if got := p.tree(docker, "overlayfs"); got["f"] != "docker" {
		t.Errorf("docker image: %v", got)
	}
	for _, tag := range []string{"1", "all", "docker"} {
		name := p.reg.Host + "/library/app:" + tag
		if err := p.gc.Remove(t.Context(), p.store.In(ns), true, func(tx *store.Tx) error { return tx.DeleteImage(name, "") }); err != nil {
			t.Fatal(err)
		}
	}
	p.nothing()
}

// TestSameImageAtOnceIsFetchedOnce: many ask for it, under one name and others, into
// one snapshotter and another: each blob crosses the network once.
func TestSameImageAtOnceIsFetchedOnce(t *testing.T) {
	p := newPlace(t)
	img := app()
	for _, tag := range []string{"1", "2"} {
		p.reg.Push("library/app", tag, img)
	}
	slow := func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		time.Sleep(50 * time.Millisecond)
		next.ServeHTTP(w, q)
	}
	p.reg.Add(registrytest.Fault{Method: http.MethodGet, Path: "/blobs/", Do: slow})
	var wg sync.WaitGroup
	for n := range 24 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			sn := []string{"overlayfs", "overlayfs", "native"}[n%3]
			if _, err := p.pull([]string{"1", "2"}[n%2], Target{Snapshotter: sn}); err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	count := map[string]int{}
	for _, q := range p.reg.Requests() {
		if _, dg, ok := strings.Cut(q.Path, "/blobs/"); ok && q.Method == http.MethodGet {
			count[dg]++
		}
	}
	if len(count) != len(img.Layers)+1 {
		t.Errorf("fetched %v, want the config and %d layers", count, len(img.Layers))
	}
	for dg, n := range count {
		if n != 1 {
			t.Errorf("%s was fetched %d times", dg, n)
		}
	}
	p.isApp(img, "overlayfs")
	p.isApp(img, "native")
}

// TestPullHeals: whatever was damaged or lost on the disk is there and right after
// one pull.
func TestPullHeals(t *testing.T) {
	img := app()
	blob := func(p *place, dg digest.Digest) string {
		return filepath.Join(p.root, "content", "blobs", "sha256", dg.Encoded())
	}
	change := func(path string) error {
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for i := range data {
			data[i] ^= 0x55
		}
		return os.WriteFile(path, data, 0o644)
	}
	layers := func(p *place) []string {
		dirs, err := filepath.Glob(filepath.Join(p.root, "overlayfs", "snapshots", "*"))
		if err != nil || len(dirs) != 3 {
			t.Fatalf("layers: %v, %v", dirs, err)
		}
		slices.Sort(dirs)
		return dirs
	}
	unlayer := func(p *place) error { // the layers are gone in the ordinary way: the blobs are what is left
		chain := chainIDs(img.DiffIDs)
		return p.store.In(ns).Update(t.Context(), func(tx *store.Tx) error {
			for _, c := range slices.Backward(chain) {
				if err := tx.RemoveSnapshot("overlayfs", c.String()); err != nil {
					return err
				}
			}
			return nil
		})
	}
	cases := map[string]func(p *place) error{
		"layer blob missing":   func(p *place) error { return os.Remove(blob(p, img.Layers[1].Digest)) },
		"layer blob cut":       func(p *place) error { return os.Truncate(blob(p, img.Layers[0].Digest), 10) },
		"config damaged":       func(p *place) error { return change(blob(p, img.Config.Digest)) },
		"config missing":       func(p *place) error { return os.Remove(blob(p, img.Config.Digest)) },
		"manifest damaged":     func(p *place) error { return change(blob(p, img.Descriptor.Digest)) },
		"all blobs missing":    func(p *place) error { return os.RemoveAll(filepath.Dir(blob(p, img.Config.Digest))) },
		"layer to unpack, bad": func(p *place) error { return joined(unlayer(p), change(blob(p, img.Layers[1].Digest))) },
		"plain layer, bad":     func(p *place) error { return joined(unlayer(p), change(blob(p, img.Layers[2].Digest))) },
		"layer directory gone": func(p *place) error { return os.RemoveAll(layers(p)[1]) },
		"all directories gone": func(p *place) error {
			for _, d := range layers(p) {
				if err := os.RemoveAll(d); err != nil {
					return err
				}
			}
			return nil
		},
	}
	for name, damage := range cases {
		t.Run(name, func(t *testing.T) {
			p := newPlace(t)
			p.reg.Push("library/app", "1", img)
			if _, err := p.pull("1", forAll...); err != nil {
				t.Fatal(err)
			}
			if err := damage(p); err != nil {
				t.Fatal(err)
			}
			if _, err := p.pull("1", forAll...); err != nil {
				t.Fatal(err)
			}
			p.isApp(img, "overlayfs")
			for _, d := range append([]ocispec.Descriptor{img.Descriptor, img.Config}, img.Layers...) {
				data, err := os.ReadFile(blob(p, d.Digest))
				if err != nil || digest.FromBytes(data) != d.Digest {
					t.Errorf("blob %s: %v, or damaged", d.Digest, err)
				}
			}
		})
	}
}

func joined(all ...error) error {
	for _, err := range all {
		if err != nil {
			return err
		}
	}
	return nil
}

// TestPullResumes: a transfer that broke off goes on where it stopped.
func TestPullResumes(t *testing.T) {
	p := newPlace(t)
	img := registrytest.Build(registrytest.Image{Layers: []registrytest.Layer{{
		Files: []registrytest.File{{Name: "big", Body: strings.Repeat("0123456789abcdef", 64<<10)}}, Compression: registrytest.Plain,
	}}})
	p.reg.Push("library/app", "1", img)
	size := img.Layers[0].Size
	p.reg.Add(registrytest.Fault{Path: "/blobs/" + img.Layers[0].Digest.String(), Times: 1, Do: registrytest.DropAfter(int(size / 2))})
	if _, err := p.pull("1", forAll...); err != nil {
		t.Fatal(err)
	}
	var from string
	for _, q := range p.reg.Requests() {
		if r := q.Header.Get("Range"); r != "" {
			from = r
		}
	}
	if from == "" {
		t.Error("nobody asked for the rest by a range")
	}
	if got := p.tree(img, "overlayfs"); len(got["big"]) != 1<<20 {
		t.Errorf("the file has %d bytes", len(got["big"]))
	}
}

// kindOf is one of the kinds that a hostile image may end in.
func hasKind(err error, kinds ...error) bool {
	return slices.ContainsFunc(kinds, func(k error) bool { return errs.Is(err, k) })
}
