package registry

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/base/errs"
)

// maxDepth is how deep objects and lists may nest in a manifest.
const maxDepth = 64

// shape is what tells manifests and indexes apart.
type shape struct {
	mediaType string
	keys      map[string]bool // of the outermost object
}

// typeFor gives the document's type, or an error if it is not the one that it was
// served or named as.
func (s shape) typeFor(served string) (string, error) {
	index, manifest := s.keys["manifests"], s.keys["layers"] || s.keys["config"]
	if s.keys["fsLayers"] {
		return "", errs.New(errs.Unimplemented, "the image is in Docker's schema 1, which is not supported: push it again with a newer tool")
	}
	if index && manifest {
		return "", errs.New(errs.InvalidArgument, "the document is an index and a manifest at once")
	}
	t := s.mediaType
	if t == "" && isManifestType(served) {
		t = served
	}
	if t == "" { // OCI allows both to be silent; the keys decide
		switch {
		case index:
			t = ocispec.MediaTypeImageIndex
		case manifest:
			t = ocispec.MediaTypeImageManifest
		default:
			return "", errs.New(errs.InvalidArgument, "the document is neither an index nor a manifest")
		}
	}
	switch {
	case !isManifestType(t):
		return "", errs.New(errs.InvalidArgument, "the document says it is %.80q, which is neither an index nor a manifest", t)
	case isManifestType(served) && served != t:
		return "", errs.New(errs.InvalidArgument, "the document says it is %s, it was served or named as %s", t, served)
	case isIndexType(t) && manifest, !isIndexType(t) && index:
		return "", errs.New(errs.InvalidArgument, "the document says it is %s, its content says otherwise", t)
	}
	return t, nil
}

// exactKeys of a manifest or index must be spelled as here: some JSON readers,
// Go's among them, take other cases for the same.
var exactKeys = []string{"mediaType", "manifests", "layers", "config", "schemaVersion", "fsLayers", "subject", "artifactType"}

// readShape walks a document once and refuses what JSON readers disagree on: a
// key twice in one object, keys that differ only in case (outside of annotations,
// where any key goes), text after the end.
func readShape(data []byte) (shape, error) {
	s := shape{keys: map[string]bool{}}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	tok, err := dec.Token()
	if err != nil || tok != json.Delim('{') {
		return shape{}, errs.New(errs.InvalidArgument, "the document is not a JSON object")
	}
	if err := s.object(dec, 1, false); err != nil {
		return shape{}, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return shape{}, errs.New(errs.InvalidArgument, "there is more after the document")
	}
	return s, nil
}

// object reads up to the closing brace of an object whose opening one was read.
func (s *shape) object(dec *json.Decoder, depth int, annotations bool) error {
	seen := map[string]bool{}
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return notJSON(dec)
		}
		key, _ := tok.(string)
		fold := key
		if !annotations {
			fold = strings.ToLower(key)
		}
		if seen[fold] {
			return errs.New(errs.InvalidArgument, "the document has the key %.80q twice in one object", key)
		}
		seen[fold] = true
		if depth == 1 {
			for _, known := range exactKeys {
				if key != known && strings.EqualFold(key, known) {
					return errs.New(errs.InvalidArgument, "the document has the key %.80q for %q", key, known)
				}
			}
			s.keys[key] = true
		}
		value, err := s.value(dec, depth, key == "annotations")
		if err != nil {
			return err
		}
		if depth == 1 && key == "mediaType" {
			text, ok := value.(string)
			if !ok {
				return errs.New(errs.InvalidArgument, "the document's mediaType is not text")
			}
			s.mediaType = text
		}
	}
	return closing(dec)
}

// value reads one value and returns it if it is neither object nor list.
func (s *shape) value(dec *json.Decoder, depth int, annotations bool) (any, error) {
	tok, err := dec.Token()
	if err != nil {
		return nil, notJSON(dec)
	}
	open, ok := tok.(json.Delim)
	if !ok {
		return tok, nil
	}
	if depth == maxDepth {
		return nil, errs.New(errs.InvalidArgument, "the document nests deeper than %d", maxDepth)
	}
	if open == '{' {
		return nil, s.object(dec, depth+1, annotations)
	}
	for dec.More() {
		if _, err := s.value(dec, depth+1, false); err != nil {
			return nil, err
		}
	}
	return nil, closing(dec)
}

func closing(dec *json.Decoder) error {
	if _, err := dec.Token(); err != nil {
		return notJSON(dec)
	}
	return nil
}

func notJSON(dec *json.Decoder) error {
	return errs.New(errs.InvalidArgument, "the document is not JSON: it ends or breaks at byte %d", dec.InputOffset())
}
