package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/engine/image/registry/registrytest"
)

// oneLayer is an image with one layer of files.
func oneLayer(files ...registrytest.File) registrytest.Built {
	return registrytest.Build(registrytest.Image{Layers: []registrytest.Layer{{Files: files}}})
}

// TestHostileImages: each ends in an error that says what is wrong, in little time
// and memory, and leaves nothing.
func TestHostileImages(t *testing.T) {
	good := oneLayer(registrytest.File{Name: "f", Body: strings.Repeat("x", 100<<10)})
	blobs := "/blobs/" + good.Layers[0].Digest.String()
	push := func(img registrytest.Built) func(*place) {
		return func(p *place) { p.reg.Push("library/app", "1", img) }
	}
	fault := func(do registrytest.Doer) func(*place) {
		return func(p *place) {
			push(good)(p)
			p.reg.Add(registrytest.Fault{Method: http.MethodGet, Path: blobs, Do: do})
		}
	}
	kinds := []error{errs.InvalidArgument, errs.FailedPrecondition, errs.DataLoss, errs.ResourceExhausted, errs.OutOfRange, errs.Unavailable, errs.NotFound}
	cases := map[string]struct {
		set  func(*place)
		text string // part of the error
	}{
		"other bytes":       {fault(registrytest.Wrong()), ""},
		"too few bytes":     {fault(registrytest.Body("short")), ""},
		"endless body":      {fault(registrytest.Endless()), ""},
		"no such blob":      {fault(registrytest.Status(http.StatusNotFound)), ""},
		"a page of html":    {fault(registrytest.Body("<html>" + strings.Repeat("log in ", 20000))), ""},
		"wrong diff id":     {push(withDiffID(good, digest.FromString("another"))), "digest"},
		"no tar":            {push(layerOf([]byte(strings.Repeat("this is no tar ", 1000)))), ""},
		"no gzip":           {push(badGzip()), ""},
		"up and out":        {push(oneLayer(registrytest.File{Name: "../../../../../../../../tmp/berth-escaped", Body: "x"})), ""},
		"by a link":         {push(oneLayer(registrytest.File{Name: "l", Type: tar.TypeSymlink, Link: "/tmp"}, registrytest.File{Name: "l/berth-escaped", Body: "x"})), ""},
		"by a hard link":    {push(oneLayer(registrytest.File{Name: "passwd", Type: tar.TypeLink, Link: "../../../../../../../../etc/passwd"})), ""},
		"whiteout outside":  {push(oneLayer(registrytest.File{Name: "../../.wh.f"})), ""},
		"thousands":         {thousands(12000), "at most"},
		"many":              {thousands(3000), "at most"},
		"deep manifest":     {document(ocispec.MediaTypeImageManifest, deep(200_000)), ""},
		"deep config":       {deepConfig(200_000), ""},
		"huge manifest":     {document(ocispec.MediaTypeImageManifest, []byte(`{"schemaVersion":2,"x":"`+strings.Repeat("y", 8<<20)+`"}`)), ""},
		"index in an index": {nested(20), ""},
		"negative size":     {document(ocispec.MediaTypeImageManifest, negative()), "negative"},
		"digest no digest":  {document(ocispec.MediaTypeImageManifest, []byte(`{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:../../x","size":3},"layers":[]}`)), "digest"},
		"long path":         {push(oneLayer(registrytest.File{Name: strings.Repeat("d/", 100_000) + "f", Body: "x"})), ""},
		"long name":         {push(oneLayer(registrytest.File{Name: strings.Repeat("n", 5000), Body: "x"})), ""},
		"big xattr":         {push(oneLayer(registrytest.File{Name: "f", Body: "x", Xattrs: map[string]string{"user.x": strings.Repeat("v", 900<<10)}})), ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			p := newPlace(t)
			c.set(p)
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			start := time.Now()
			_, err := p.pull("1", forAll...)
			took := time.Since(start)
			runtime.ReadMemStats(&after)
			if err == nil {
				// Some are harmless: then what they made is inside.
				if !strings.Contains("up and out by a link whiteout outside long path", name) {
					t.Fatal("it was taken in")
				}
			} else {
				if !hasKind(err, kinds...) || !strings.Contains(err.Error(), c.text) {
					t.Errorf("error %v: want one with %q, of a known kind", err, c.text)
				}
				if len(err.Error()) > 4000 {
					t.Errorf("the message has %d bytes: %.200s", len(err.Error()), err)
				}
				p.nothing()
			}
			if took > 30*time.Second {
				t.Errorf("took %s", took)
			}
			if grown := int64(after.HeapSys) - int64(before.HeapSys); grown > 256<<20 {
				t.Errorf("the heap grew by %d MiB", grown>>20)
			}
			if _, err := os.Lstat("/tmp/berth-escaped"); err == nil {
				t.Error("a file was written outside")
				_ = os.Remove("/tmp/berth-escaped")
			}
		})
	}
}

// TestBombStops: a small blob that inflates without end is stopped at the budget,
// which is made small by the disk: here by the tree's own limit of entries.
func TestBombIsBounded(t *testing.T) {
	// 1 GiB of zeros in one file: sparse on the disk, and its diff id is wrong, so
	// that it is read to its end and taken away again.
	const size = 1 << 30
	var head bytes.Buffer
	tw := tar.NewWriter(&head)
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "zeros", Mode: 0o644, Size: size}); err != nil {
		t.Fatal(err)
	}
	img := oneLayer(registrytest.File{Name: "f"})
	bomb := bombOf(t, head.Bytes(), size)
	img = withLayer(img, bomb, digest.FromString("not this"))
	p := newPlace(t)
	p.reg.Push("library/app", "1", img)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := p.pull("1", forAll...)
	runtime.ReadMemStats(&after)
	if err == nil {
		t.Fatal("it was taken in")
	}
	if grown := int64(after.HeapSys) - int64(before.HeapSys); grown > 128<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
	p.nothing()
}

// manifestOf makes an image of a config and layers that are there as bytes.
func manifestOf(config []byte, layers ...[]byte) registrytest.Built {
	describe := func(mediaType string, data []byte) ocispec.Descriptor {
		return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: describe(ocispec.MediaTypeImageConfig, config)}
	out := registrytest.Built{Config: m.Config, Blobs: [][]byte{config}}
	for _, l := range layers {
		m.Layers = append(m.Layers, describe(ocispec.MediaTypeImageLayerGzip, l))
		out.Blobs = append(out.Blobs, l)
	}
	out.Layers = m.Layers
	out.Data, _ = json.Marshal(m)
	out.Descriptor = describe(ocispec.MediaTypeImageManifest, out.Data)
	return out
}

func configOf(diffs ...digest.Digest) []byte {
	c := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: diffs}}
	data, _ := json.Marshal(c)
	return data
}

func withDiffID(img registrytest.Built, dg digest.Digest) registrytest.Built {
	return manifestOf(configOf(dg), img.Blobs[0])
}

func withLayer(_ registrytest.Built, layer []byte, dg digest.Digest) registrytest.Built {
	return manifestOf(configOf(dg), layer)
}

func layerOf(tarBytes []byte) registrytest.Built {
	return manifestOf(configOf(digest.FromBytes(tarBytes)), registrytest.Compress(registrytest.Gzip, tarBytes))
}

func badGzip() registrytest.Built {
	data := registrytest.Compress(registrytest.Gzip, registrytest.Tar([]registrytest.File{{Name: "f", Body: strings.Repeat("y", 1<<20)}}))
	data = data[:len(data)/2]
	return manifestOf(configOf(digest.FromString("x")), data)
}

// thousands is an image with more layers than any image has.
func thousands(n int) func(*place) {
	return func(p *place) {
		layer := registrytest.Compress(registrytest.Gzip, registrytest.Tar([]registrytest.File{{Name: "f", Body: "x"}}))
		diff := digest.FromBytes(registrytest.Tar([]registrytest.File{{Name: "f", Body: "x"}}))
		var layers [][]byte
		var diffs []digest.Digest
		for range n {
			layers, diffs = append(layers, layer), append(diffs, diff)
		}
		p.reg.Push("library/app", "1", manifestOf(configOf(diffs...), layers...))
	}
}

func document(mediaType string, data []byte) func(*place) {
	return func(p *place) { p.reg.PutManifest("library/app", "1", mediaType, data) }
}

func deep(n int) []byte {
	return []byte(`{"schemaVersion":2,"annotations":` + strings.Repeat(`{"a":`, n) + `1` + strings.Repeat(`}`, n) + `}`)
}

func deepConfig(n int) func(*place) {
	return func(p *place) {
		config := []byte(`{"architecture":"amd64","os":"linux","config":{"Labels":` + strings.Repeat(`{"a":`, n) + `1` + strings.Repeat(`}`, n) + `}}`)
		p.reg.Push("library/app", "1", manifestOf(config))
	}
}

// nested is an index that leads to an index, and so on.
func nested(n int) func(*place) {
	return func(p *place) {
		img := oneLayer(registrytest.File{Name: "f", Body: "x"})
		p.reg.Push("library/app", "inner", img)
		d := img.Descriptor
		for i := range n {
			x := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{d}}
			data, _ := json.Marshal(x)
			tag := ""
			if i == n-1 {
				tag = "1"
			}
			d = p.reg.PutManifest("library/app", tag, ocispec.MediaTypeImageIndex, data)
		}
	}
}

func negative() []byte {
	return []byte(fmt.Sprintf(`{"schemaVersion":2,"config":{"mediaType":%q,"digest":%q,"size":-5},"layers":[]}`, ocispec.MediaTypeImageConfig, digest.FromString("c")))
}

// bombOf is a gzip of head and then size zeros.
func bombOf(t *testing.T, head []byte, size int64) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bomb")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := writeBomb(f, head, size); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func writeBomb(w io.Writer, head []byte, size int64) error {
	zw, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil {
		return err
	}
	if _, err := zw.Write(head); err != nil {
		return err
	}
	zeros := make([]byte, 1<<20)
	for n := int64(0); n < size+1024; n += int64(len(zeros)) {
		if _, err := zw.Write(zeros); err != nil {
			return err
		}
	}
	return zw.Close()
}
