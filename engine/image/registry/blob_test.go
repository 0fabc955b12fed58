package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/engine/image/registry/registrytest"
)

func blobs(do registrytest.Doer) registrytest.Fault {
	return registrytest.Fault{Method: "GET", Path: "/blobs/", Do: do}
}

// fetch reads the only layer of an image.
func fetch(t *testing.T, h *harness, ref string, d ocispec.Descriptor, offset int64) (int64, int, error) {
	t.Helper()
	r, err := h.Open(parse(t, ref), Options{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := r.FetchBlob(t.Context(), d, offset)
	if err != nil {
		return 0, 0, err
	}
	defer b.Close()
	if offset > 0 {
		n, err := io.Copy(io.Discard, b)
		return n, b.Reopened(), err
	}
	n, err := readAll(b, d)
	return n, b.Reopened(), err
}

// TestBlobResumes is R06: cut at each 1/32, the rest comes by Range.
func TestBlobResumes(t *testing.T) {
	const size = 320_000
	reg, h, img, ref := setup(t, registrytest.Options{}, size)
	layer := img.Layers[0]
	for i := range 32 {
		reg.Reset()
		cut := int(layer.Size) * i / 32
		f := blobs(registrytest.DropAfter(cut))
		f.Times = 1
		reg.Add(f)
		n, reopened, err := fetch(t, h, ref.String(), layer, 0)
		if err != nil || n != layer.Size || reopened != 1 {
			t.Errorf("cut at %d: %d bytes, reopened %d times, %v", cut, n, reopened, err)
		}
		last := reg.Requests()[len(reg.Requests())-1].Header.Get("Range")
		if want := fmt.Sprintf("bytes=%d-%d", cut, layer.Size-1); cut > 0 && last != want {
			t.Errorf("cut at %d: asked for %q, want %q", cut, last, want)
		}
	}
}

func TestBlobSurvives(t *testing.T) {
	const size = 200_000
	everyTime := func(n int) registrytest.Fault { return blobs(registrytest.DropAfter(n)) }
	once := func(do registrytest.Doer) registrytest.Fault { f := blobs(do); f.Times = 1; return f }
	after := func(n int, do registrytest.Doer) registrytest.Fault { f := blobs(do); f.Skip = n; return f }
	contentRange := func(v string) registrytest.Doer { return registrytest.Header("Content-Range", v) }
	full := func(w http.ResponseWriter, q *http.Request, next http.Handler) { // 206 for a whole body
		q.Header.Set("Range", "bytes=0-")
		next.ServeHTTP(w, q)
	}
	for name, tc := range map[string]struct {
		faults []registrytest.Fault
		offset int64
		err    error
	}{
		"nothing wrong":                {},
		"from the middle":              {offset: size / 2},
		"last byte":                    {offset: size - 1},
		"cut every 10 kB":              {faults: []registrytest.Fault{everyTime(10_000)}},
		"cut after the header":         {faults: []registrytest.Fault{once(registrytest.DropAfter(0))}},
		"cut at once, four times":      {faults: []registrytest.Fault{{Path: "/blobs/", Times: 4, Do: registrytest.Drop()}}},
		"cut after the header, always": {faults: []registrytest.Fault{everyTime(0)}, err: errs.Unavailable},
		"cut, then range ignored":      {faults: []registrytest.Fault{once(registrytest.DropAfter(50_000)), blobs(registrytest.IgnoreRange())}},
		"cut, then 416":                {faults: []registrytest.Fault{once(registrytest.DropAfter(50_000)), once(registrytest.Status(416))}},
		"cut, then wrong range":        {faults: []registrytest.Fault{once(registrytest.DropAfter(50_000)), once(contentRange("bytes 0-10/11"))}},
		"cut, then no range header":    {faults: []registrytest.Fault{once(registrytest.DropAfter(50_000)), once(contentRange(""))}},
		"cut, then nonsense range":     {faults: []registrytest.Fault{once(registrytest.DropAfter(50_000)), once(contentRange("bytes 50000-99999999999999999999/*"))}},
		"cut, then 206 from the start": {faults: []registrytest.Fault{once(registrytest.DropAfter(50_000)), once(full)}},
		"206 for a whole body":         {faults: []registrytest.Fault{blobs(full)}},
		"stall, then fine":             {faults: []registrytest.Fault{once(registrytest.StallAfter(50_000))}},
		"stall in the header":          {faults: []registrytest.Fault{once(registrytest.StallAfter(-1))}, err: errs.Unavailable},
		"trickle, then fine":           {faults: []registrytest.Fault{once(registrytest.Trickle(10, 10*time.Millisecond))}},
		"500, 503, then fine":          {faults: []registrytest.Fault{once(registrytest.Status(500)), once(registrytest.Status(503))}},
		"429, then fine":               {faults: []registrytest.Fault{once(registrytest.Status(429, "Retry-After", "1"))}},
		"408, then fine":               {faults: []registrytest.Fault{once(registrytest.Status(408))}},
		"too long":                     {faults: []registrytest.Fault{blobs(registrytest.Body(strings.Repeat("x", size*2), "Content-Length", fmt.Sprint(size*2)))}, err: errs.DataLoss},
		"too short":                    {faults: []registrytest.Fault{blobs(registrytest.Body("x"))}, err: errs.DataLoss},
		"gone in the middle":           {faults: []registrytest.Fault{once(registrytest.DropAfter(50_000)), after(0, registrytest.Status(404))}, err: errs.NotFound},
		"length in two ways": {faults: []registrytest.Fault{blobs(registrytest.Raw(0,
			"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello"))}, err: errs.Unavailable},
		"negative length":  {faults: []registrytest.Fault{blobs(registrytest.Raw(0, "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello"))}, err: errs.Unavailable},
		"no length, short": {faults: []registrytest.Fault{once(registrytest.Raw(0, "HTTP/1.1 200 OK\r\n\r\n"))}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reg, h, img, ref := setup(t, registrytest.Options{}, size)
			for _, f := range tc.faults {
				reg.Add(f)
			}
			began := time.Now()
			n, _, err := fetch(t, h, ref.String(), img.Layers[0], tc.offset)
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("took %s", took)
			}
			if tc.err != nil {
				wantKind(t, err, tc.err)
				return
			}
			if err != nil || n != img.Layers[0].Size-tc.offset {
				t.Errorf("%d bytes, %v", n, err)
			}
		})
	}
}

// TestResumeCost: a transfer that is cut again and again is not fetched twice.
func TestResumeCost(t *testing.T) {
	reg, h, img, ref := setup(t, registrytest.Options{}, 2_000_000)
	var sent counter
	f := blobs(func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		registrytest.DropAfter(150_000)(&countingWriter{w, &sent}, q, next)
	})
	reg.Add(f)
	if _, _, err := fetch(t, h, ref.String(), img.Layers[0], 0); err != nil {
		t.Fatal(err)
	}
	if got := sent.n.Load(); float64(got) > 1.1*float64(img.Layers[0].Size) {
		t.Errorf("%d bytes for a blob of %d", got, img.Layers[0].Size)
	}
}

func TestBlobFallsToTheNextHostInTheMiddle(t *testing.T) {
	for name, do := range map[string]registrytest.Doer{
		"stall": registrytest.StallAfter(30_000), "trickle": registrytest.Trickle(10, 10*time.Millisecond), "dead": registrytest.DropAfter(0),
	} {
		t.Run(name, func(t *testing.T) {
			m := newMirrored(t, "")
			m.one.Add(blobs(do))
			began := time.Now()
			if _, _, err := fetch(t, m.harness, m.ref.String(), m.img.Layers[0], 0); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took > 2*time.Second || m.two.Count("GET", "/blobs/") != 1 {
				t.Errorf("took %s, second host asked %d times", took, m.two.Count("GET", "/blobs/"))
			}
		})
	}
}

// TestSlowButSteadyIsTakenInTheEnd: where nobody is faster, slow is better than never.
func TestSlowButSteadyIsTakenInTheEnd(t *testing.T) {
	reg, h, img, ref := setup(t, registrytest.Options{}, 3000)
	h.limits.SlowRate, h.limits.DeadRate, h.limits.RateWindow = 1<<20, 16, 100*time.Millisecond
	reg.Add(blobs(registrytest.Trickle(50, 10*time.Millisecond))) // 5 kB/s
	n, reopened, err := fetch(t, h, ref.String(), img.Layers[0], 0)
	if err != nil || n != img.Layers[0].Size || reopened != patience {
		t.Errorf("%d bytes, reopened %d times, %v", n, reopened, err)
	}
}

func TestBlobContext(t *testing.T) {
	reg, h, img, ref := setup(t, registrytest.Options{}, 100_000)
	reg.Add(blobs(registrytest.StallAfter(10_000)))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	r, err := h.Open(ref, Options{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := r.FetchBlob(ctx, img.Layers[0], 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(io.Discard, b)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	b.Close()
	if _, err := b.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("read after close: %v", err)
	}
}

// TestSlowReaderIsNotASlowHost: time spent by whoever reads does not count.
func TestSlowReaderIsNotASlowHost(t *testing.T) {
	_, h, img, ref := setup(t, registrytest.Options{}, 1_000_000)
	h.limits.Stall, h.limits.RateWindow = 50*time.Millisecond, 20*time.Millisecond
	r, err := h.Open(ref, Options{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := r.FetchBlob(t.Context(), img.Layers[0], 0)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	buf := make([]byte, 100_000)
	for range 3 {
		if _, err := b.Read(buf); err != nil {
			t.Fatal(err)
		}
		if err := sleep(t.Context(), 100*time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := io.Copy(io.Discard, b); err != nil || b.Reopened() != 0 {
		t.Errorf("reopened %d times, %v", b.Reopened(), err)
	}
}

func TestForeignURLs(t *testing.T) {
	foreign := registrytest.Start(t, registrytest.Options{})
	reg, h, img, ref := setup(t, registrytest.Options{Auth: registrytest.Basic, Users: users}, 1000)
	layer := img.Layers[0]
	data, _ := reg.Blob("lib/app", layer.Digest)
	foreign.Put("x", data)
	reg.Delete("lib/app", layer.Digest)
	at := foreign.URL + "/v2/x/blobs/" + layer.Digest.String()
	opts := Options{Credentials: login("ann", "s3cret-pass"), Header: http.Header{"X-Own": {"canary"}}}
	open := func(urls ...string) error {
		r, err := h.Open(ref, opts)
		if err != nil {
			t.Fatal(err)
		}
		d := layer
		d.URLs = urls
		b, err := r.FetchBlob(t.Context(), d, 0)
		if err != nil {
			return err
		}
		defer b.Close()
		_, err = readAll(b, d)
		return err
	}
	wantKind(t, open(), errs.NotFound)
	if err := open("ftp://x/y", "file:///etc/passwd", "::", "http://169.254.169.254/latest", at); err != nil {
		t.Error(err)
	}
	wantKind(t, open("http://169.254.169.254/latest/meta-data"), errs.NotFound)
	if err := open("http://169.254.169.254/latest/meta-data"); !strings.Contains(err.Error(), "link-local address") {
		t.Errorf("got %v", err)
	}
	foreign.Add(registrytest.Fault{Do: registrytest.Status(401, "WWW-Authenticate", `Basic realm="f"`, "WWW-Authenticate", `Bearer realm="`+foreign.URL+`/token"`)})
	if err := open(strings.Replace(at, "http://", "http://user:pw@", 1)); err == nil {
		t.Error("a URL that wants a credential was fetched")
	}
	for _, q := range foreign.Requests() {
		if q.Header.Get("Authorization") != "" || q.Header.Get("X-Own") != "" || q.Path == "/token" {
			t.Errorf("the foreign host saw %s %v", q.Path, q.Header)
		}
	}
}

func TestParallelFetch(t *testing.T) {
	const size = 3*chunkSize + 12345
	reg, h, img, ref := setup(t, registrytest.Options{}, size)
	layer := img.Layers[0]
	want, _ := reg.Blob("lib/app", layer.Digest)
	for name, tc := range map[string]struct {
		fault  registrytest.Doer
		offset int64
	}{
		"plain": {}, "from the middle": {offset: chunkSize / 2}, "cut": {fault: registrytest.DropAfter(3 << 20)}, "no ranges": {fault: registrytest.IgnoreRange()},
	} {
		t.Run(name, func(t *testing.T) {
			reg.Reset()
			if tc.fault != nil {
				reg.Add(blobs(tc.fault))
			}
			r, err := h.Open(ref, Options{})
			if err != nil {
				t.Fatal(err)
			}
			b, err := r.FetchBlobParallel(t.Context(), layer, tc.offset, 3)
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			got, err := io.ReadAll(b)
			if err != nil || !bytes.Equal(got, want[tc.offset:]) {
				t.Errorf("%d bytes of %d, %v", len(got), len(want), err)
			}
		})
	}
	// Closing early ends all streams.
	reg.Reset()
	reg.Add(blobs(registrytest.StallAfter(1 << 20)))
	r, err := h.Open(ref, Options{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := r.FetchBlobParallel(t.Context(), layer, 0, 4)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if b.Close(); time.Since(began) > time.Second {
		t.Errorf("close took %s", time.Since(began))
	}
}

func TestContentRange(t *testing.T) {
	for in, want := range map[string]string{
		"bytes 0-9/10": "0 9 10 true", "bytes 5-9/*": "5 9 -1 true", "bytes */10": "0 0 0 false", "": "0 0 0 false", "bytes 5-/10": "5 -1 10 false",
		"items 0-9/10": "0 0 0 false", "bytes -1-9/10": "-1 -1 10 false", "bytes 1-9223372036854775808/10": "1 -1 10 false", "bytes 0-9/+10": "0 9 -1 false",
	} {
		a, b, c, ok := parseContentRange(in)
		if got := fmt.Sprint(a, b, c, ok); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}
