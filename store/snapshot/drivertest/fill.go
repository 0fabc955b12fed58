package drivertest

import (
	"archive/tar"
	"bytes"
	"slices"

	"github.com/berthd/berth/base/label"
	"github.com/berthd/berth/base/spec"
	"github.com/berthd/berth/host/archive"
	"github.com/berthd/berth/host/mount"
	"github.com/berthd/berth/store/snapshot"
)

func layerTar(s *suite, entries ...tar.Header) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range entries {
		text := ""
		if h.Typeflag == tar.TypeReg {
			text = h.Linkname // the contents, in these tests
			h.Linkname, h.Size = "", int64(len(text))
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		s.ok("tar header", w.WriteHeader(&h))
		_, err := w.Write([]byte(text))
		s.ok("tar contents", err)
	}
	s.ok("tar end", w.Close())
	return buf.Bytes()
}

// tarLayers are layers with every kind of deletion and inheritance.
func tarLayers(s *suite) [][]byte {
	reg := func(name, text string) tar.Header {
		return tar.Header{Typeflag: tar.TypeReg, Name: name, Linkname: text}
	}
	dir := func(name string, mode int64) tar.Header {
		return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode}
	}
	return [][]byte{
		layerTar(s, dir("a/", 0o700), reg("a/1", "one"), reg("a/2", "two"), dir("b/", 0o755), reg("b/1", "one"), dir("c/", 0o755), reg("c/1", "x"), reg("f", "low")),
		layerTar(s, reg("a/3", "three"), reg("a/.wh.1", ""), dir("b/", 0o711), reg("b/.wh..wh..opq", ""), reg("b/2", "two"), reg(".wh.c", "")),
		layerTar(s, dir("c/", 0o750), reg("c/2", "new"), tar.Header{Typeflag: tar.TypeLink, Name: "a/link", Linkname: "a/2"},
			reg(".wh.f", ""), tar.Header{Typeflag: tar.TypeSymlink, Name: "f", Linkname: "a/2"}),
	}
}

var tarLayersSeen = []string{
	"a/", "a/2 two", "a/3 three", "a/link two", "b/", "b/2 two", "c/", "c/2 new", "f -> a/2",
}

// fill writes a layer as unpack does. The first layer has no parents to mark.
func (s *suite) fill(l snapshot.Layer, layer []byte, bottom bool) (archive.Unresolved, string) {
	s.Helper()
	dir, style, ok := s.Fill(s.ctx(), l)
	if !ok {
		s.Fatal("the driver has no directory to fill: give it a case of its own")
	}
	if bottom {
		style = spec.WhiteoutRemove
	}
	res, err := archive.Apply(s.ctx(), dir, bytes.NewReader(layer), archive.ApplyOptions{Whiteout: style})
	s.ok("apply", err)
	return res.Unresolved, dir
}

func (s *suite) trees(ids []uint64) []string {
	var out []string
	for _, id := range ids {
		if dir, ok := s.Tree(id); ok {
			out = append(out, dir)
		}
	}
	return out
}

func filled(s *suite) {
	var id uint64
	for i, layer := range tarLayers(s) {
		l := s.make(snapshot.Active, id)
		left, dir := s.fill(l, layer, i == 0)
		s.ok("finish", archive.Finish(s.ctx(), dir, left, s.trees(l.Parents)))
		id = s.seal(l)
	}
	s.sees(id, tarLayersSeen...)
	s.in(s.make(snapshot.View, id), func(root string) { s.mode(root, "a", 0o700) })
	id = 0
	for _, layer := range tarLayers(s) { // the same through mounts
		l := s.make(snapshot.Active, id)
		s.in(l, func(root string) {
			_, err := archive.Apply(s.ctx(), root, bytes.NewReader(layer), archive.ApplyOptions{Whiteout: spec.WhiteoutRemove})
			s.ok("apply", err)
		})
		id = s.seal(l)
	}
	s.sees(id, tarLayersSeen...)
}

// rebased fills the layers from the top down, each without parents, and gives them
// their parents at the end.
func rebased(s *suite) {
	if !slices.Contains(s.Capabilities(), snapshot.CapRebase) {
		return
	}
	layers := tarLayers(s)
	made := make([]snapshot.Layer, len(layers))
	left := make([]archive.Unresolved, len(layers))
	dirs := make([]string, len(layers))
	for i := len(layers) - 1; i >= 0; i-- {
		made[i] = s.make(snapshot.Active, 0)
		left[i], dirs[i] = s.fill(made[i], layers[i], i == 0)
	}
	dir, _, _ := s.Fill(s.ctx(), made[0])
	s.apply(dir, chmod(".", 0o705))
	var id uint64
	for i, l := range made {
		l.Parents = s.chain[id]
		s.ok("finish", archive.Finish(s.ctx(), dirs[i], left[i], s.trees(l.Parents)))
		id = s.seal(l)
	}
	s.sees(id, tarLayersSeen...)
	s.in(s.make(snapshot.View, id), func(root string) {
		s.mode(root, ".", 0o705)
		s.mode(root, "a", 0o700)
	})
}

func mapped(s *suite) {
	if !slices.Contains(s.Capabilities(), snapshot.CapRemapIDs) {
		return
	}
	labels := map[string]string{label.SnapshotUIDMap: "0:100000:65536", label.SnapshotGIDMap: "0:200000:65536"}
	low := s.layer(0, write("f", "1"), mkdir("d", 0o755), chownTo("d", 5, 6))
	for _, parent := range []uint64{low, s.layer(low, write("g", "2"))} {
		for _, kind := range []snapshot.Kind{snapshot.Active, snapshot.View} {
			s.last++
			l := snapshot.Layer{ID: s.last, Kind: kind, Parents: s.chain[parent], Labels: labels}
			s.ok("make", s.Make(s.ctx(), l))
			s.in(l, func(root string) {
				s.owner(root, "f", 100000, 200000)
				s.owner(root, "d", 100005, 200006)
				s.owner(root, ".", 100000, 200000)
			})
		}
	}
	if left, err := mount.Points(s.root); err != nil || len(left) > 0 {
		s.Errorf("left mounted: %v %v", left, err)
	}
}
