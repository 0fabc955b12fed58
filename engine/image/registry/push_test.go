package registry

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/engine/image/registry/registrytest"
)

func source(data []byte) Source {
	return SourceFunc(func(offset int64) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data[offset:])), nil })
}

func describeBlob(data []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: "application/octet-stream", Digest: digest.FromBytes(data), Size: int64(len(data))}
}

func pushTo(t *testing.T, o registrytest.Options) (*registrytest.Registry, *harness, *Remote) {
	t.Helper()
	reg := registrytest.Start(t, o)
	h := newHarness(t, quickLimits())
	r, err := h.Open(parse(t, reg.Host+"/lib/new:v1"), Options{Credentials: login("ann", "s3cret-pass")})
	if err != nil {
		t.Fatal(err)
	}
	return reg, h, r
}

// pushImage sends all of an image, children first.
func pushImage(t *testing.T, r *Remote, img registrytest.Built, tag string) error {
	t.Helper()
	for i, d := range append(append([]ocispec.Descriptor{}, img.Layers...), img.Config) {
		if _, err := r.PushBlob(t.Context(), d, source(img.Blobs[i])); err != nil {
			return err
		}
	}
	return r.PutManifest(t.Context(), img.Descriptor, img.Data, tag)
}

func TestPush(t *testing.T) {
	for name, o := range map[string]registrytest.Options{
		"open": {}, "basic": {Auth: registrytest.Basic, Users: users}, "token": {Auth: registrytest.Token, Users: users}, "tls": {TLS: true, Auth: registrytest.Token, Users: users},
	} {
		t.Run(name, func(t *testing.T) {
			reg, h, r := pushTo(t, o)
			img := layered(300_000)
			if err := pushImage(t, r, img, "v1"); err != nil {
				t.Fatal(err)
			}
			if reg.Tag("lib/new", "v1") != img.Descriptor.Digest {
				t.Error("the tag is not there")
			}
			if err := r.PutManifest(t.Context(), img.Descriptor, img.Data, ""); err != nil {
				t.Errorf("by digest: %v", err)
			}
			if ok, err := r.ManifestExists(t.Context(), img.Descriptor, "v1"); !ok || err != nil {
				t.Errorf("manifest exists: %t, %v", ok, err)
			}
			if how, err := r.PushBlob(t.Context(), img.Layers[0], source(nil)); how != Existed || err != nil {
				t.Errorf("again: %s, %v", how, err)
			}
			if _, err := h.pull(t.Context(), r.Ref(), r.opts); err != nil {
				t.Errorf("pull of what was pushed: %v", err)
			}
		})
	}
}

func TestMount(t *testing.T) {
	data := []byte("some content")
	for name, tc := range map[string]struct {
		opts registrytest.Options
		from []string
		want Pushed
	}{
		"there":           {from: []string{"lib/old"}, want: Mounted},
		"with tokens":     {opts: registrytest.Options{Auth: registrytest.Token, Users: users}, from: []string{"lib/old"}, want: Mounted},
		"not there":       {from: []string{"lib/none"}, want: Uploaded},
		"bad name":        {from: []string{"../../x", "a b"}, want: Uploaded},
		"itself":          {from: []string{"lib/new"}, want: Uploaded},
		"first good name": {from: []string{"lib/new", "..", "lib/old"}, want: Mounted},
	} {
		t.Run(name, func(t *testing.T) {
			reg, _, r := pushTo(t, tc.opts)
			reg.Put("lib/old", data)
			how, err := r.PushBlob(t.Context(), describeBlob(data), source(data), tc.from...)
			if how != tc.want || err != nil {
				t.Errorf("%s, %v", how, err)
			}
			if got, _ := reg.Blob("lib/new", digest.FromBytes(data)); !bytes.Equal(got, data) {
				t.Error("the blob is not there")
			}
		})
	}
	t.Run("not allowed to read there", func(t *testing.T) {
		reg, _, r := pushTo(t, registrytest.Options{})
		reg.Add(registrytest.Fault{Method: "POST", Times: 1, Do: registrytest.Status(403)})
		if how, err := r.PushBlob(t.Context(), describeBlob(data), source(data), "lib/old"); how != Uploaded || err != nil {
			t.Errorf("%s, %v", how, err)
		}
	})
}

func TestUploadGoesOn(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789"), 100_000)
	// cut takes n bytes of the body and drops the connection.
	cut := func(n int64) registrytest.Doer {
		return func(w http.ResponseWriter, q *http.Request, next http.Handler) {
			q.Body = &cutBody{io.LimitReader(q.Body, n)}
			next.ServeHTTP(discardWriter{http.Header{}}, q)
			panic(http.ErrAbortHandler)
		}
	}
	put := func(f registrytest.Doer, times int) registrytest.Fault {
		return registrytest.Fault{Method: "PUT", Path: "/uploads/", Times: times, Do: f}
	}
	for name, tc := range map[string]struct {
		faults []registrytest.Fault
		patch  int
		err    error
	}{
		"fine":                     {},
		"cut in the middle":        {faults: []registrytest.Fault{put(cut(400_000), 1)}, patch: 1},
		"cut at the start":         {faults: []registrytest.Fault{put(cut(0), 1)}},
		"dropped without a word":   {faults: []registrytest.Fault{put(registrytest.Drop(), 2)}},
		"always cut":               {faults: []registrytest.Fault{put(cut(0), 0)}, err: errs.Unavailable},
		"the session is lost":      {faults: []registrytest.Fault{put(cut(400_000), 1), {Method: "GET", Path: "/uploads/", Times: 1, Do: registrytest.Status(404)}}},
		"503 at the end":           {faults: []registrytest.Fault{put(registrytest.Status(503), 1)}},
		"refused at the start":     {faults: []registrytest.Fault{{Method: "POST", Do: registrytest.Status(403)}}, err: errs.PermissionDenied},
		"it stores something else": {faults: []registrytest.Fault{put(registrytest.Header("Docker-Content-Digest", "sha256:"+strings.Repeat("0", 64)), 0)}, err: errs.DataLoss},
	} {
		t.Run(name, func(t *testing.T) {
			reg, _, r := pushTo(t, registrytest.Options{})
			for _, f := range tc.faults {
				reg.Add(f)
			}
			how, err := r.PushBlob(t.Context(), describeBlob(data), source(data))
			if tc.err != nil {
				wantKind(t, err, tc.err)
				return
			}
			if how != Uploaded || err != nil {
				t.Fatalf("%s, %v", how, err)
			}
			if got, _ := reg.Blob("lib/new", digest.FromBytes(data)); !bytes.Equal(got, data) {
				t.Error("the blob is not there")
			}
			if n := reg.Count("PATCH", ""); n != tc.patch {
				t.Errorf("%d PATCH requests, want %d", n, tc.patch)
			}
		})
	}
}

// cutBody ends like a connection that broke.
type cutBody struct{ io.Reader }

func (b *cutBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (b *cutBody) Close() error { return nil }

type discardWriter struct{ h http.Header }

func (d discardWriter) Header() http.Header         { return d.h }
func (d discardWriter) Write(p []byte) (int, error) { return len(p), nil }
func (d discardWriter) WriteHeader(int)             {}

func TestWrongContentIsRefused(t *testing.T) {
	_, _, r := pushTo(t, registrytest.Options{})
	d := describeBlob([]byte("right"))
	_, err := r.PushBlob(t.Context(), d, source([]byte("wrong")))
	wantKind(t, err, errs.InvalidArgument)
	err = r.PutManifest(t.Context(), d, []byte("wrong"), "v1")
	wantKind(t, err, errs.InvalidArgument)
	err = r.PutManifest(t.Context(), describeBlob([]byte("{}")), []byte("{}"), "../x")
	wantKind(t, err, errs.InvalidArgument)
	_, err = r.PushBlob(t.Context(), d, SourceFunc(func(int64) (io.ReadCloser, error) { return nil, errs.New(errs.NotFound, "it is gone") }))
	if err == nil || !strings.Contains(err.Error(), "it is gone") || strings.Count(err.Error(), "it is gone") != 1 {
		t.Errorf("source that does not open: %v", err)
	}
}

// TestUploadElsewhere is CVE-2026-50151: the session's address is on another host.
func TestUploadElsewhere(t *testing.T) {
	for _, auth := range []registrytest.Auth{registrytest.Basic, registrytest.Token} {
		a, _, r := pushTo(t, registrytest.Options{Auth: auth, Users: users})
		b := registrytest.Start(t, registrytest.Options{})
		data := []byte("content")
		for name, header := range map[string]string{"quiet": "", "asks": `Basic realm="b"`} {
			a.Reset()
			b.Reset()
			a.Add(registrytest.Fault{Method: "POST", Path: "/uploads/", Do: registrytest.Status(202, "Location", b.URL+"/v2/x/blobs/uploads/u1?_state=su1")})
			b.Add(registrytest.Fault{Do: registrytest.Status(map[bool]int{true: 401, false: 201}[header != ""], "WWW-Authenticate", header)})
			_, err := r.PushBlob(t.Context(), describeBlob(data), source(data))
			if (err != nil) != (header != "") {
				t.Errorf("%s: %v", name, err)
			}
			if len(b.Requests()) == 0 {
				t.Errorf("%s: the other host was not asked", name)
			}
			for _, q := range b.Requests() {
				if q.Header.Get("Authorization") != "" || q.Query.Get("_state") != "su1" || q.Query.Get("digest") == "" {
					t.Errorf("%s: it saw %s %v %v", name, q.Method, q.Query, q.Header)
				}
			}
		}
	}
	// Not from https to http.
	a, _, r := pushTo(t, registrytest.Options{TLS: true})
	a.Add(registrytest.Fault{Method: "POST", Do: registrytest.Status(202, "Location", "http://"+a.Host+"/x")})
	_, err := r.PushBlob(t.Context(), describeBlob([]byte("x")), source([]byte("x")))
	wantKind(t, err, errs.PermissionDenied)
}

func TestPushIndexAndEmptyBlob(t *testing.T) {
	reg, _, r := pushTo(t, registrytest.Options{})
	one, two := layered(10), registrytest.Build(registrytest.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "arm64"}})
	index := registrytest.Index(one, two)
	for _, img := range []registrytest.Built{one, two} {
		if err := pushImage(t, r, img, ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.PutManifest(t.Context(), index.Descriptor, index.Data, "all"); err != nil {
		t.Fatal(err)
	}
	if how, err := r.PushBlob(t.Context(), describeBlob(nil), source(nil)); how != Uploaded || err != nil {
		t.Errorf("empty blob: %s, %v", how, err)
	}
	if reg.Tag("lib/new", "all") != index.Descriptor.Digest {
		t.Error("the index is not there")
	}
}
