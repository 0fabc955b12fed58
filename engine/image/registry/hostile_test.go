package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/engine/image/registry/registrytest"
)

// The corpus R of hostile registries. Each case must end within its time, with an
// error of a kind unless the content can still be had, hold no more memory than a
// pull may, leave no goroutine, and not keep the next pull from another registry.
const (
	hostileTime   = 15 * time.Second
	hostileMemory = 64 << 20 // bytes over what was in use before
)

type hostile struct {
	name    string
	opts    registrytest.Options
	faults  func(reg *registrytest.Registry) []registrytest.Fault
	options Options
	kind    error // nil: the pull must work
}

func one(f registrytest.Fault) func(*registrytest.Registry) []registrytest.Fault {
	return func(*registrytest.Registry) []registrytest.Fault { return []registrytest.Fault{f} }
}

func do(path string, d registrytest.Doer) func(*registrytest.Registry) []registrytest.Fault {
	return one(registrytest.Fault{Path: path, Do: d})
}

// repeatBody is an error answer whose body does not end.
func repeatBody(code int) registrytest.Doer {
	return func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		w.WriteHeader(code)
		registrytest.Endless()(w, q, next)
	}
}

func hostileCases() []hostile {
	manyHeaders := "HTTP/1.1 200 OK\r\n" + strings.Repeat("X-A: b\r\n", 200_000)
	continues := strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 50_000)
	chunkStorm := "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("1;"+strings.Repeat("x", 1000)+"\r\n \r\n", 2_000)
	slowHeader := append([]string{"HTTP/1.1 200 OK\r\n"}, strings.Split(strings.Repeat("X", 200), "")...)
	return []hostile{
		{name: "R01 redirect loop", faults: do("", registrytest.Redirect(302, "/v2/lib/app/manifests/v1")), kind: errs.FailedPrecondition},
		{name: "R01 redirect without end", faults: do("", func(w http.ResponseWriter, q *http.Request, _ http.Handler) {
			http.Redirect(w, q, q.URL.Path+"x", http.StatusTemporaryRedirect)
		}), kind: errs.FailedPrecondition},
		{name: "R01 to file", faults: do("", registrytest.Redirect(302, "file:///etc/passwd")), kind: errs.PermissionDenied},
		{name: "R01 to gopher", faults: do("", registrytest.Redirect(302, "gopher://127.0.0.1:70/1")), kind: errs.PermissionDenied},
		{name: "R01 from https to http", opts: registrytest.Options{TLS: true}, faults: do("", registrytest.Redirect(302, "http://127.0.0.1/")), kind: errs.PermissionDenied},
		{name: "R01 to link-local", faults: do("", registrytest.Redirect(302, "http://169.254.169.254/latest")), kind: errs.PermissionDenied},
		{name: "R01 to nowhere", faults: do("", registrytest.Redirect(302, "")), kind: errs.FailedPrecondition},
		{name: "R01 to nonsense", faults: do("", registrytest.Redirect(302, "http://[::1")), kind: errs.FailedPrecondition},
		{name: "R02 http realm of an https registry", opts: registrytest.Options{TLS: true, Auth: registrytest.Token, Realm: "http://192.0.2.1/token"}, kind: errs.PermissionDenied},
		{name: "R02 metadata realm", opts: registrytest.Options{Auth: registrytest.Token, Realm: "https://169.254.169.254/token"}, kind: errs.PermissionDenied},
		{name: "R02 octal realm", opts: registrytest.Options{Auth: registrytest.Token, Realm: "https://0251.0376.0251.0376/token"}, kind: errs.PermissionDenied},
		{name: "R02 no realm", opts: registrytest.Options{Auth: registrytest.Token, Realm: " "}, kind: errs.PermissionDenied},
		{name: "R03 endless manifest", opts: registrytest.Options{NoDigestHeader: true}, faults: one(registrytest.Fault{Method: "GET", Path: "/manifests/", Do: registrytest.Endless()}), kind: errs.ResourceExhausted},
		{name: "R03 endless blob", faults: do("/blobs/", registrytest.Endless()), kind: errs.DataLoss},
		{name: "R04 a byte now and then", faults: do("/blobs/", registrytest.Trickle(1, 20*time.Millisecond)), kind: errs.Unavailable},
		{name: "R04 slow manifest", faults: one(registrytest.Fault{Method: "GET", Path: "/manifests/", Do: registrytest.Trickle(1, 20*time.Millisecond)}), kind: errs.Unavailable},
		{name: "R04 slow header", faults: do("/manifests/", registrytest.Raw(50*time.Millisecond, slowHeader...)), kind: errs.Unavailable},
		{name: "R04 no header", faults: do("/manifests/", registrytest.StallAfter(-1)), kind: errs.Unavailable},
		{name: "R05 short manifest", faults: one(registrytest.Fault{Method: "GET", Path: "/manifests/", Do: registrytest.Body("{}", "Content-Length", "2")}), kind: errs.DataLoss},
		{name: "R05 absurd length", faults: do("/blobs/", registrytest.Raw(0, "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nx")), kind: errs.Unavailable},
		{name: "R05 length and chunks", faults: do("/blobs/", registrytest.Raw(0, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")), kind: errs.DataLoss},
		{name: "R07 digest header lies about content", faults: one(registrytest.Fault{Method: "GET", Path: "/manifests/", Do: registrytest.Wrong()}), kind: errs.DataLoss},
		{name: "R07 digest header lies about the tag", faults: one(registrytest.Fault{Method: "HEAD", Path: "/manifests/", Do: registrytest.Header("Docker-Content-Digest", "sha256:"+strings.Repeat("0", 64))}), kind: errs.NotFound},
		{name: "R07 digest header is a path", faults: do("/manifests/", registrytest.Header("Docker-Content-Digest", "sha256:../../../../etc/passwd")), kind: errs.DataLoss},
		{name: "R09 401 for ever, basic", faults: do("", registrytest.Status(401, "WWW-Authenticate", `Basic realm="x"`)), options: Options{Credentials: login("ann", "s3cret-pass")}, kind: errs.Unauthenticated},
		{name: "R09 401 for ever, bearer", faults: func(r *registrytest.Registry) []registrytest.Fault {
			return []registrytest.Fault{{Path: "/v2/", Do: registrytest.Status(401, "WWW-Authenticate", `Bearer realm="`+r.URL+`/token"`)}}
		}, opts: registrytest.Options{Anonymous: true}, kind: errs.Unauthenticated},
		{name: "R09 401 without a challenge", faults: do("", registrytest.Status(401)), kind: errs.Unauthenticated},
		{name: "R09 401 in each spelling", faults: do("", registrytest.Status(401, "WWW-Authenticate", strings.Repeat(`Basic realm="x",Bearer realm="y",`, 200))), kind: errs.PermissionDenied},
		{name: "R09 403", faults: do("", registrytest.Status(403)), kind: errs.PermissionDenied},
		{name: "R09 404", faults: do("", registrytest.Status(404)), kind: errs.NotFound},
		{name: "R09 409", faults: do("", registrytest.Status(409)), kind: errs.FailedPrecondition},
		{name: "R09 418", faults: do("", registrytest.Status(418)), kind: errs.FailedPrecondition},
		{name: "R09 429 for an age", faults: do("", registrytest.Status(429, "Retry-After", "1000000000")), kind: errs.Unavailable},
		{name: "R09 429 for ever", faults: do("", registrytest.Status(429, "Retry-After", "0")), kind: errs.Unavailable},
		{name: "R09 429 with nonsense", faults: do("", registrytest.Status(429, "Retry-After", "-99999999999999999999")), kind: errs.Unavailable},
		{name: "R09 500", faults: do("", registrytest.Status(500)), kind: errs.Unavailable},
		{name: "R09 503", faults: do("", registrytest.Status(503)), kind: errs.Unavailable},
		{name: "R09 status 999", faults: do("", registrytest.Raw(0, "HTTP/1.1 999 x\r\nContent-Length: 0\r\n\r\n")), kind: errs.Unavailable},
		{name: "R10 endless token", opts: registrytest.Options{Auth: registrytest.Token}, faults: do("/token", registrytest.Endless()), kind: errs.ResourceExhausted},
		{name: "R10 slow token", opts: registrytest.Options{Auth: registrytest.Token}, faults: do("/token", registrytest.StallAfter(-1)), kind: errs.Unavailable},
		{name: "R10 token with newline", opts: registrytest.Options{Auth: registrytest.Token}, faults: do("/token", registrytest.Body("{\"token\":\"a\\r\\nX: y\"}")), kind: errs.Unavailable},
		{name: "R11 200,000 headers", faults: do("", registrytest.Raw(0, manyHeaders, "\r\n")), kind: errs.Unavailable},
		{name: "R11 a large header", faults: do("", registrytest.Raw(0, "HTTP/1.1 200 OK\r\nX: ", strings.Repeat("x", 4<<20), "\r\n\r\n")), kind: errs.Unavailable},
		{name: "R11 continue storm", faults: do("", registrytest.Raw(0, continues, "HTTP/1.1 200 OK\r\n\r\n")), kind: errs.Unavailable},
		{name: "R11 chunk extensions", opts: registrytest.Options{NoDigestHeader: true}, faults: one(registrytest.Fault{Method: "GET", Path: "/manifests/", Do: registrytest.Raw(0, chunkStorm)}), kind: errs.Unavailable},
		{name: "R16 endless error body", opts: registrytest.Options{NoDigestHeader: true}, faults: one(registrytest.Fault{Method: "GET", Do: repeatBody(400)}), kind: errs.InvalidArgument},
		{name: "R16 header with escapes", faults: do("", registrytest.Status(400, "X", "\x1b[2J")), kind: errs.Unavailable},
		{name: "R16 error body with escapes", opts: registrytest.Options{NoDigestHeader: true}, faults: one(registrytest.Fault{Method: "GET", Do: func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, `{"errors":[{"code":"\u001b[2J","message":"\u0000\n\u202ee`+strings.Repeat("x", 30_000)+`"}]}`)
		}}), kind: errs.InvalidArgument},
		{name: "R16 html", faults: do("", registrytest.Body("<html>", "Content-Type", "text/html")), kind: errs.InvalidArgument},
	}
}

func TestHostileRegistries(t *testing.T) {
	good := registrytest.Start(t, registrytest.Options{})
	good.Push("lib/app", "v1", layered(1000))
	for _, tc := range hostileCases() {
		t.Run(tc.name, func(t *testing.T) {
			reg := registrytest.Start(t, tc.opts)
			reg.Push("lib/app", "v1", layered(2_000_000))
			if tc.faults != nil {
				for _, f := range tc.faults(reg) {
					reg.Add(f)
				}
			}
			limits := quickLimits()
			limits.HeaderWait, limits.Stall, limits.RateWindow = time.Second, 300*time.Millisecond, 300*time.Millisecond
			h := newHarness(t, limits)
			watch := watchMemory()
			began := time.Now()
			_, err := h.pull(t.Context(), parse(t, reg.Host+"/lib/app:v1"), tc.options)
			took, peak := time.Since(began), watch()
			if took > hostileTime {
				t.Errorf("took %s", took)
			}
			if peak > hostileMemory {
				t.Errorf("held %d MiB", peak>>20)
			}
			if tc.kind == nil && err != nil {
				t.Fatal(err)
			}
			if errors.Is(tc.kind, errs.DataLoss) && err != nil && strings.Contains(err.Error(), "digest right: false") {
				err = errs.New(errs.DataLoss, "%w", err) // a blob's content is the reader's to judge
			}
			if tc.kind != nil {
				wantKind(t, err, tc.kind)
			}
			if len(err.Error()) > 4096 || strings.ContainsAny(err.Error(), "\x1b\n\x00") {
				t.Errorf("the error is not fit to be shown: %d bytes", len(err.Error()))
			}
			if n := len(reg.Requests()); n > 64 {
				t.Errorf("%d requests", n)
			}
			if _, err := h.pull(t.Context(), parse(t, good.Host+"/lib/app:v1"), Options{}); err != nil {
				t.Errorf("the next pull, from a good registry: %v", err)
			}
		})
	}
}

// watchMemory samples the heap until the returned function is called, which gives
// the largest growth in bytes.
func watchMemory() func() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	start := int64(m.HeapInuse)
	stop, peak := make(chan struct{}), make(chan int64)
	go func() {
		most := int64(0)
		for {
			select {
			case <-stop:
				peak <- most
				return
			case <-time.After(20 * time.Millisecond):
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				most = max(most, int64(m.HeapInuse)-start)
			}
		}
	}()
	return func() int64 { close(stop); return <-peak }
}

// TestTagMovesInBetween is R08.
func TestTagMovesInBetween(t *testing.T) {
	reg, h, img, ref := setup(t, registrytest.Options{}, 10)
	d, r, err := h.Resolve(t.Context(), ref, Options{})
	if err != nil {
		t.Fatal(err)
	}
	reg.Push("lib/app", "v1", layered(20))
	data, err := r.FetchManifest(t.Context(), d)
	if err != nil || !bytes.Equal(data, img.Data) {
		t.Errorf("another manifest, or none: %v", err)
	}
	reg.Delete("lib/app", d.Digest)
	_, err = r.FetchManifest(t.Context(), d)
	wantKind(t, err, errs.NotFound)
}

// TestTLSStalls is R12 as far as TestTLS has not got it.
func TestTLSStalls(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close() // says nothing
		}
	}()
	limits := quickLimits()
	limits.HeaderWait = 300 * time.Millisecond
	h := newHarness(t, limits)
	began := time.Now()
	_, _, err = h.Resolve(t.Context(), parse(t, l.Addr().String()+"/a/b:c"), Options{})
	wantKind(t, err, errs.Unavailable)
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("took %s", took)
	}
}

// TestNamesThatDoNotResolve is R14.
func TestNamesThatDoNotResolve(t *testing.T) {
	h := newHarness(t, quickLimits())
	var dials atomic.Int32
	h.pool.dial = func(context.Context, *net.Dialer, string, string) (net.Conn, error) {
		dials.Add(1)
		return nil, &net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "far.example", IsNotFound: true}}
	}
	_, _, err := h.Resolve(t.Context(), parse(t, "far.example/a/b:c"), Options{})
	wantKind(t, err, errs.Unavailable)
	if dials.Load() != 1 || !strings.Contains(err.Error(), "does not resolve") {
		t.Errorf("%d dials, %v", dials.Load(), err)
	}
}

// TestEndlessLists is R17.
func TestEndlessLists(t *testing.T) {
	reg, h, img, ref := setup(t, registrytest.Options{}, 10)
	page := func(body string) registrytest.Doer {
		n := 0
		return func(w http.ResponseWriter, q *http.Request, _ http.Handler) {
			n++
			w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
			w.Header().Set("Link", fmt.Sprintf(`<%s?n=%d>; rel="next"`, q.URL.Path, n))
			_, _ = io.WriteString(w, body)
		}
	}
	r, err := h.Open(ref, Options{})
	if err != nil {
		t.Fatal(err)
	}
	reg.Add(registrytest.Fault{Path: "/referrers/", Do: page(`{"manifests":[]}`)})
	reg.Add(registrytest.Fault{Path: "/tags/", Do: page(`{"tags":["a"]}`)})
	_, err = r.Referrers(t.Context(), img.Descriptor.Digest, "")
	wantKind(t, err, errs.ResourceExhausted)
	_, err = r.Tags(t.Context())
	wantKind(t, err, errs.ResourceExhausted)
	reg.Reset()
	many := `{"digest":"` + img.Descriptor.Digest.String() + `"},`
	reg.Add(registrytest.Fault{Path: "/referrers/", Do: page(`{"manifests":[` + strings.TrimSuffix(strings.Repeat(many, 6000), ",") + `]}`)})
	_, err = r.Referrers(t.Context(), img.Descriptor.Digest, "")
	wantKind(t, err, errs.ResourceExhausted)
	for _, next := range []string{"http://192.0.2.1/v2/x", "/v2/other/tags/list", "//evil.example/v2/lib/app/tags/list"} {
		reg.Reset()
		reg.Add(registrytest.Fault{Path: "/tags/", Do: registrytest.Body(`{"tags":[]}`, "Link", "<"+next+`>; rel="next"`)})
		_, err = r.Tags(t.Context())
		wantKind(t, err, errs.DataLoss)
	}
}

// TestManyPullsOfABadImage is R18.
func TestManyPullsOfABadImage(t *testing.T) {
	reg, h, img, ref := setup(t, registrytest.Options{}, 100_000)
	reg.Add(registrytest.Fault{Path: "/blobs/" + img.Layers[0].Digest.String(), Do: registrytest.DropAfter(0)})
	watch := watchMemory()
	began := time.Now()
	goroutines := runtime.NumGoroutine()
	var wg sync.WaitGroup
	for range 1000 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			_, _ = h.pull(ctx, ref, Options{})
		})
	}
	wg.Wait()
	t.Logf("1000 pulls in %s, %d MiB more heap, %d requests", time.Since(began).Round(time.Millisecond), watch()>>20, len(reg.Requests()))
	if took := time.Since(began); took > 60*time.Second {
		t.Errorf("took %s", took)
	}
	h.Close()
	for range 100 {
		if runtime.NumGoroutine() < goroutines+50 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("%d goroutines before, %d after", goroutines, runtime.NumGoroutine())
}

// TestAmbiguousManifests is CVE-2021-41190 and J04, J05: refused with the same
// kind for every served type.
func TestAmbiguousManifests(t *testing.T) {
	const m, i = ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex
	deep := strings.Repeat(`{"a":`, 200) + "1" + strings.Repeat("}", 200)
	for name, tc := range map[string]struct {
		doc, served string
		ok          bool
	}{
		"manifest":                 {`{"mediaType":"` + m + `","config":{},"layers":[]}`, m, true},
		"manifest, silent":         {`{"config":{},"layers":[]}`, m, true},
		"index, silent":            {`{"manifests":[]}`, i, true},
		"annotations in two cases": {`{"layers":[],"annotations":{"a":"1","A":"2"}}`, m, true},
		"both":                     {`{"layers":[],"manifests":[]}`, m, false},
		"both, as index":           {`{"layers":[],"manifests":[]}`, i, false},
		"both, with type":          {`{"mediaType":"` + i + `","config":{},"manifests":[]}`, i, false},
		"index as manifest":        {`{"mediaType":"` + i + `","manifests":[]}`, m, false},
		"manifest as index":        {`{"mediaType":"` + m + `","layers":[]}`, i, false},
		"silent index as manifest": {`{"manifests":[]}`, m, false},
		"silent manifest as index": {`{"layers":[]}`, i, false},
		"type says one thing":      {`{"mediaType":"` + m + `","manifests":[]}`, m, false},
		"type twice":               {`{"mediaType":"` + m + `","mediaType":"` + i + `","layers":[]}`, m, false},
		"layers twice":             {`{"layers":[],"layers":[1]}`, m, false},
		"layers in two cases":      {`{"layers":[],"Layers":[1]}`, m, false},
		"layers in another case":   {`{"LAYERS":[]}`, m, false},
		"nested twins":             {`{"layers":[{"digest":"a","Digest":"b"}]}`, m, false},
		"annotation twice":         {`{"layers":[],"annotations":{"a":"1","a":"2"}}`, m, false},
		"type is a number":         {`{"mediaType":3,"layers":[]}`, m, false},
		"type is foreign":          {`{"mediaType":"text/html","layers":[]}`, m, false},
		"not an object":            {`[]`, m, false},
		"not JSON":                 {`{"layers":[`, m, false},
		"two documents":            {`{"layers":[]}{"layers":[1]}`, m, false},
		"deep":                     {`{"layers":[],"x":` + deep + `}`, m, false},
		"schema 1":                 {`{"fsLayers":[],"history":[]}`, m, false},
	} {
		t.Run(name, func(t *testing.T) {
			reg := registrytest.Start(t, registrytest.Options{})
			h := newHarness(t, quickLimits())
			reg.PutManifest("a/b", "c", tc.served, []byte(tc.doc))
			d, r, err := h.Resolve(t.Context(), parse(t, reg.Host+"/a/b:c"), Options{})
			if err == nil {
				_, err = r.FetchManifest(t.Context(), d)
			}
			if tc.ok != (err == nil) {
				t.Errorf("got %v", err)
			}
			if !tc.ok && !errs.Is(err, errs.InvalidArgument) && !errs.Is(err, errs.Unimplemented) {
				t.Errorf("kind of %v", err)
			}
			// The same bytes named in the other way: never accepted if ambiguous.
			for _, as := range []string{m, i, dockerManifest, dockerList} {
				d := ocispec.Descriptor{MediaType: as, Digest: digest.FromString(tc.doc), Size: int64(len(tc.doc)), Data: []byte(tc.doc)}
				if _, err := r.FetchManifest(t.Context(), d); err == nil && !tc.ok && strings.Contains(name, "both") {
					t.Errorf("accepted as %s", as)
				}
			}
		})
	}
}
