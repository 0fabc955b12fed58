// Package registrytest is a small OCI registry for the tests of all of berth: it
// speaks distribution spec 1.1 from memory, asks for credentials as told, and can
// be made to fail in every way that a network has (fault.go). It also builds small
// images (image.go). It is strict where real registries are, fast, and never
// leaves the process.
//
//	reg := registrytest.Start(t, registrytest.Options{})
//	img := registrytest.Build(registrytest.Image{Layers: []registrytest.Layer{{Files: files}}})
//	reg.Push("library/app", "latest", img)
//	… pull reg.Host + "/library/app:latest" …
package registrytest

import (
	"crypto/x509"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Auth says how the registry wants to be authenticated to.
type Auth int

// The ways.
const (
	NoAuth Auth = iota
	Basic
	Token // a token server below /token of the same host, or at Options.Realm
)

// Options shape a registry; the zero value is an open one over plain http.
type Options struct {
	TLS       bool
	Auth      Auth
	Users     map[string]string // name to password; nobody else gets in
	Anonymous bool              // with Token: pull needs no user
	Realm     string            // of the token challenge, if not the registry's own
	NoPost    bool              // the token server knows only GET
	Refresh   string            // a refresh token that the token server takes

	NoReferrers    bool // the referrers API is 404, as before spec 1.1
	NoDigestHeader bool // no Docker-Content-Digest
	PageSize       int  // of tags and referrers; 0: all at once
}

// Registry is a running registry. Its methods may be called at any time.
type Registry struct {
	Host   string // host:port
	URL    string // scheme://host:port
	Opts   Options
	server *httptest.Server

	mu        sync.Mutex
	blobs     map[string]map[digest.Digest][]byte   // by repository
	manifests map[string]map[digest.Digest]manifest // by repository
	tags      map[string]map[string]digest.Digest   // by repository
	uploads   map[string][]byte
	tokens    map[string]grant
	faults    []*Fault
	log       []Request
	serial    int
}

type manifest struct {
	mediaType string
	data      []byte
}

// Request is one request that was received.
type Request struct {
	Method string
	Host   string
	Path   string
	Query  url.Values
	Header http.Header
}

// Start runs a registry on a free loopback port until the test ends.
func Start(t testing.TB, o Options) *Registry {
	r := New(o)
	r.server = httptest.NewUnstartedServer(r)
	r.server.EnableHTTP2 = o.TLS
	r.server.Config.ErrorLog = discardLog()
	if o.TLS {
		r.server.StartTLS()
	} else {
		r.server.Start()
	}
	r.URL = r.server.URL
	r.Host = strings.TrimPrefix(strings.TrimPrefix(r.URL, "http://"), "https://")
	t.Cleanup(func() {
		r.server.CloseClientConnections()
		r.server.Close()
	})
	return r
}

// New makes a registry that is an http.Handler and listens nowhere.
func New(o Options) *Registry {
	return &Registry{
		Opts:      o,
		blobs:     map[string]map[digest.Digest][]byte{},
		manifests: map[string]map[digest.Digest]manifest{},
		tags:      map[string]map[string]digest.Digest{},
		uploads:   map[string][]byte{},
		tokens:    map[string]grant{},
	}
}

// Certificate is the registry's own authority, with Options.TLS.
func (r *Registry) Certificate() *x509.Certificate { return r.server.Certificate() }

// Put stores a blob.
func (r *Registry) Put(repo string, data []byte) ocispec.Descriptor {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := digest.FromBytes(data)
	put(r.blobs, repo, d, data)
	return ocispec.Descriptor{MediaType: "application/octet-stream", Digest: d, Size: int64(len(data))}
}

// PutManifest stores a manifest as it is, under a tag too if that is not empty.
func (r *Registry) PutManifest(repo, tag, mediaType string, data []byte) ocispec.Descriptor {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := digest.FromBytes(data)
	put(r.manifests, repo, d, manifest{mediaType, data})
	if tag != "" {
		put(r.tags, repo, tag, d)
	}
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
}

// Push stores a built image and all that it names; tag may be empty.
func (r *Registry) Push(repo, tag string, img Built) {
	for _, b := range img.Blobs {
		r.Put(repo, b)
	}
	for _, m := range img.Manifests {
		r.PutManifest(repo, "", m.MediaType, m.Data)
	}
	r.PutManifest(repo, tag, img.Descriptor.MediaType, img.Data)
}

// Blob gives back a stored blob or manifest.
func (r *Registry) Blob(repo string, d digest.Digest) ([]byte, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if b, ok := r.blobs[repo][d]; ok {
		return b, true
	}
	m, ok := r.manifests[repo][d]
	return m.data, ok
}

// Tag gives the digest that a tag names, "" if there is none.
func (r *Registry) Tag(repo, tag string) digest.Digest {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tags[repo][tag]
}

// Delete forgets a blob or manifest.
func (r *Registry) Delete(repo string, d digest.Digest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.blobs[repo], d)
	delete(r.manifests[repo], d)
}

// Requests gives what was received since the start or the last Reset.
func (r *Registry) Requests() []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.log)
}

// Count counts the received requests with a method ("" any) whose path has part in it.
func (r *Registry) Count(method, part string) int {
	n := 0
	for _, q := range r.Requests() {
		if (method == "" || q.Method == method) && strings.Contains(q.Path, part) {
			n++
		}
	}
	return n
}

// Reset forgets the received requests and all faults.
func (r *Registry) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.log, r.faults = nil, nil
}

func put[K comparable, V any](m map[string]map[K]V, repo string, k K, v V) {
	if m[repo] == nil {
		m[repo] = map[K]V{}
	}
	m[repo][k] = v
}

// ServeHTTP implements http.Handler.
func (r *Registry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	r.log = append(r.log, Request{q.Method, q.Host, q.URL.Path, q.URL.Query(), q.Header.Clone()})
	fault := r.faultFor(q)
	r.mu.Unlock()
	if fault != nil {
		fault.Do(w, q, http.HandlerFunc(r.serve))
		return
	}
	r.serve(w, q)
}

// serve is the registry without faults.
func (r *Registry) serve(w http.ResponseWriter, q *http.Request) {
	if q.URL.Path == "/token" {
		r.serveToken(w, q)
		return
	}
	repo, kind, rest := route(q.URL.Path)
	if !r.authorized(w, q, repo) {
		return
	}
	switch kind {
	case "":
		w.WriteHeader(http.StatusOK) // the API's root
	case "blobs":
		r.serveBlob(w, q, repo, rest)
	case "uploads":
		r.serveUpload(w, q, repo, rest)
	case "manifests":
		r.serveManifest(w, q, repo, rest)
	case "tags":
		r.serveTags(w, q, repo)
	case "referrers":
		r.serveReferrers(w, q, repo, rest)
	default:
		fail(w, http.StatusNotFound, "UNSUPPORTED")
	}
}

// route splits /v2/REPO/KIND/REST.
func route(path string) (repo, kind, rest string) {
	p, ok := strings.CutPrefix(path, "/v2/")
	if !ok {
		return "", "none", ""
	}
	if p == "" {
		return "", "", ""
	}
	for _, k := range []string{"/blobs/uploads/", "/blobs/", "/manifests/", "/tags/", "/referrers/"} {
		if i := strings.LastIndex(p, k); i > 0 {
			kind = strings.Trim(k, "/")
			return p[:i], kind[strings.LastIndex(kind, "/")+1:], p[i+len(k):]
		}
	}
	return "", "none", ""
}

// fail answers with the spec's error document.
func fail(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"errors":[{"code":%q,"message":%q}]}`, code, strings.ToLower(code))
}
