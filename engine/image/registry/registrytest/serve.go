package registrytest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func discardLog() *log.Logger { return log.New(io.Discard, "", 0) }

func (r *Registry) serveBlob(w http.ResponseWriter, q *http.Request, repo, rest string) {
	r.mu.Lock()
	data, ok := r.blobs[repo][digest.Digest(rest)]
	r.mu.Unlock()
	switch {
	case q.Method != http.MethodGet && q.Method != http.MethodHead:
		fail(w, http.StatusMethodNotAllowed, "UNSUPPORTED")
	case !ok:
		fail(w, http.StatusNotFound, "BLOB_UNKNOWN")
	default:
		w.Header().Set("Content-Type", "application/octet-stream")
		r.sayDigest(w, digest.Digest(rest))
		http.ServeContent(w, q, "", time.Time{}, bytes.NewReader(data)) // knows Range
	}
}

func (r *Registry) sayDigest(w http.ResponseWriter, d digest.Digest) {
	if !r.Opts.NoDigestHeader {
		w.Header().Set("Docker-Content-Digest", d.String())
	}
}

// serveUpload is POST (new session or mount), PATCH, PUT and GET of a session.
func (r *Registry) serveUpload(w http.ResponseWriter, q *http.Request, repo, id string) {
	if q.Method == http.MethodPost {
		r.startUpload(w, q, repo)
		return
	}
	r.mu.Lock()
	have, ok := r.uploads[id]
	r.mu.Unlock()
	if !ok || q.URL.Query().Get("_state") != "s"+id {
		fail(w, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
		return
	}
	if cr := q.Header.Get("Content-Range"); cr != "" && !strings.HasPrefix(cr, strconv.Itoa(len(have))+"-") {
		r.session(w, repo, id, len(have), http.StatusRequestedRangeNotSatisfiable)
		return
	}
	var body bytes.Buffer
	_, err := io.Copy(&body, q.Body)
	have = append(slices.Clone(have), body.Bytes()...) // also what came before a broken connection
	r.mu.Lock()
	r.uploads[id] = have
	r.mu.Unlock()
	if err != nil {
		fail(w, http.StatusBadRequest, "SIZE_INVALID")
		return
	}
	switch q.Method {
	case http.MethodGet:
		r.session(w, repo, id, len(have), http.StatusNoContent)
	case http.MethodPatch:
		r.session(w, repo, id, len(have), http.StatusAccepted)
	case http.MethodPut:
		r.finishUpload(w, q, repo, id, have)
	default:
		fail(w, http.StatusMethodNotAllowed, "UNSUPPORTED")
	}
}

func (r *Registry) startUpload(w http.ResponseWriter, q *http.Request, repo string) {
	query := q.URL.Query()
	mount, from := digest.Digest(query.Get("mount")), query.Get("from")
	r.mu.Lock()
	data, ok := r.blobs[from][mount]
	if ok {
		put(r.blobs, repo, mount, data)
	}
	r.serial++
	id := fmt.Sprintf("up%d", r.serial)
	r.uploads[id] = nil
	r.mu.Unlock()
	if ok {
		r.created(w, repo, "blobs", mount)
		return
	}
	r.session(w, repo, id, 0, http.StatusAccepted)
}

// session describes an upload; its address has a query that must be kept.
func (r *Registry) session(w http.ResponseWriter, repo, id string, have, status int) {
	w.Header().Set("Location", fmt.Sprintf("/v2/%s/blobs/uploads/%s?_state=s%s", repo, id, id))
	w.Header().Set("Range", fmt.Sprintf("0-%d", max(have-1, 0)))
	w.WriteHeader(status)
}

func (r *Registry) finishUpload(w http.ResponseWriter, q *http.Request, repo, id string, data []byte) {
	d := digest.Digest(q.URL.Query().Get("digest"))
	if d != digest.FromBytes(data) {
		fail(w, http.StatusBadRequest, "DIGEST_INVALID")
		return
	}
	r.mu.Lock()
	delete(r.uploads, id)
	put(r.blobs, repo, d, data)
	r.mu.Unlock()
	r.created(w, repo, "blobs", d)
}

func (r *Registry) created(w http.ResponseWriter, repo, kind string, d digest.Digest) {
	w.Header().Set("Location", "/v2/"+repo+"/"+kind+"/"+d.String())
	r.sayDigest(w, d)
	w.WriteHeader(http.StatusCreated)
}

func (r *Registry) serveManifest(w http.ResponseWriter, q *http.Request, repo, object string) {
	if q.Method == http.MethodPut {
		r.putManifest(w, q, repo, object)
		return
	}
	r.mu.Lock()
	d := digest.Digest(object)
	if !strings.Contains(object, ":") {
		d = r.tags[repo][object]
	}
	m, ok := r.manifests[repo][d]
	r.mu.Unlock()
	if !ok {
		fail(w, http.StatusNotFound, "MANIFEST_UNKNOWN")
		return
	}
	w.Header().Set("Content-Type", m.mediaType)
	w.Header().Set("Content-Length", strconv.Itoa(len(m.data)))
	r.sayDigest(w, d)
	if q.Method != http.MethodHead {
		_, _ = w.Write(m.data)
	}
}

// putManifest refuses a manifest whose parts are not there.
func (r *Registry) putManifest(w http.ResponseWriter, q *http.Request, repo, object string) {
	data, err := io.ReadAll(io.LimitReader(q.Body, 4<<20))
	var doc struct {
		Config            ocispec.Descriptor
		Layers, Manifests []ocispec.Descriptor
		Subject           *ocispec.Descriptor
	}
	if err != nil || json.Unmarshal(data, &doc) != nil {
		fail(w, http.StatusBadRequest, "MANIFEST_INVALID")
		return
	}
	d := digest.FromBytes(data)
	if strings.Contains(object, ":") && object != d.String() {
		fail(w, http.StatusBadRequest, "DIGEST_INVALID")
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range append(doc.Layers, doc.Config) {
		if _, ok := r.blobs[repo][l.Digest]; !ok && l.Digest != "" && len(l.URLs) == 0 {
			fail(w, http.StatusNotFound, "BLOB_UNKNOWN")
			return
		}
	}
	for _, m := range doc.Manifests {
		if _, ok := r.manifests[repo][m.Digest]; !ok {
			fail(w, http.StatusNotFound, "MANIFEST_BLOB_UNKNOWN")
			return
		}
	}
	put(r.manifests, repo, d, manifest{q.Header.Get("Content-Type"), data})
	if !strings.Contains(object, ":") {
		put(r.tags, repo, object, d)
	}
	if doc.Subject != nil && !r.Opts.NoReferrers {
		w.Header().Set("OCI-Subject", doc.Subject.Digest.String())
	}
	r.created(w, repo, "manifests", d)
}

func (r *Registry) serveTags(w http.ResponseWriter, q *http.Request, repo string) {
	r.mu.Lock()
	var names []string
	for t := range r.tags[repo] {
		names = append(names, t)
	}
	r.mu.Unlock()
	if len(names) == 0 {
		fail(w, http.StatusNotFound, "NAME_UNKNOWN")
		return
	}
	slices.Sort(names)
	w.Header().Set("Content-Type", "application/json")
	page := paginate(w, q, r.Opts.PageSize, names)
	_ = json.NewEncoder(w).Encode(map[string]any{"name": repo, "tags": page})
}

// paginate cuts a page out of list and links to the next one.
func paginate[T any](w http.ResponseWriter, q *http.Request, size int, list []T) []T {
	from, _ := strconv.Atoi(q.URL.Query().Get("from"))
	from = min(max(from, 0), len(list))
	to := len(list)
	if size > 0 {
		to = min(from+size, to)
	}
	if to < len(list) {
		query := q.URL.Query()
		query.Set("from", strconv.Itoa(to))
		w.Header().Set("Link", fmt.Sprintf(`<%s?%s>; rel="next"`, q.URL.Path, query.Encode()))
	}
	return list[from:to]
}

func (r *Registry) serveReferrers(w http.ResponseWriter, q *http.Request, repo, of string) {
	if r.Opts.NoReferrers {
		fail(w, http.StatusNotFound, "UNSUPPORTED")
		return
	}
	list := []ocispec.Descriptor{}
	r.mu.Lock()
	for d, m := range r.manifests[repo] {
		var doc struct {
			ArtifactType string
			Config       ocispec.Descriptor
			Subject      *ocispec.Descriptor
			Annotations  map[string]string
		}
		if json.Unmarshal(m.data, &doc) != nil || doc.Subject == nil || doc.Subject.Digest.String() != of {
			continue
		}
		if doc.ArtifactType == "" {
			doc.ArtifactType = doc.Config.MediaType
		}
		list = append(list, ocispec.Descriptor{
			MediaType: m.mediaType, Digest: d, Size: int64(len(m.data)), ArtifactType: doc.ArtifactType, Annotations: doc.Annotations,
		})
	}
	r.mu.Unlock()
	slices.SortFunc(list, func(a, b ocispec.Descriptor) int { return strings.Compare(a.Digest.String(), b.Digest.String()) })
	w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
	index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: paginate(w, q, r.Opts.PageSize, list)}
	index.SchemaVersion = 2
	_ = json.NewEncoder(w).Encode(index)
}
