// Package imageref splits, checks and prints the names of images. A name in full
// is host/path[:tag][@digest]; ctr gives names in full, CRI and nerdctl the short
// form that Docker made common ("busybox"). It never looks anything up.
package imageref

import (
	_ "crypto/sha256" // the algorithms that CheckDigest knows must be linked
	_ "crypto/sha512"
	"regexp"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/base/errs"
)

// The words that the short form leaves out.
const (
	DefaultHost = "docker.io"
	DefaultTag  = "latest"
	hubPrefix   = "library/"
)

// MaxLength is the longest name in bytes that is looked at; the grammar itself
// allows 255 for host and path, 128 for a tag and 135 for a digest.
const MaxLength = 1024

// Reference is one image name, checked. Tag and Digest may each be empty.
type Reference struct {
	Host   string // with port, as in "localhost:5000"; never empty
	Path   string // repository, as in "library/busybox"
	Tag    string
	Digest digest.Digest
}

// Parse reads a name in full: the part before the first slash is the host,
// whatever it looks like. Errors are of kind InvalidArgument.
func Parse(s string) (Reference, error) {
	if err := checkLength(s); err != nil {
		return Reference{}, err
	}
	r, err := reference.Parse(s)
	if err != nil {
		return Reference{}, errs.New(errs.InvalidArgument, "image name %q: %w", s, err)
	}
	named, ok := r.(reference.Named)
	if !ok || reference.Domain(named) == "" {
		return Reference{}, errs.New(errs.InvalidArgument, "image name %q has no host: write it in full, as in %s/%s%s", s, DefaultHost, hubPrefix, short(s))
	}
	return split(s, named)
}

// Normalize reads a name in Docker's short form: no host means docker.io, one
// path element there means library/, neither tag nor digest means :latest.
// Errors are of kind InvalidArgument.
func Normalize(s string) (Reference, error) {
	if err := checkLength(s); err != nil {
		return Reference{}, err
	}
	named, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return Reference{}, errs.New(errs.InvalidArgument, "image name %q: %w", s, err)
	}
	return split(s, reference.TagNameOnly(named))
}

func checkLength(s string) error {
	if len(s) > MaxLength {
		return errs.New(errs.InvalidArgument, "image name %q… has %d bytes, at most %d are allowed", s[:32], len(s), MaxLength)
	}
	return nil
}

func short(s string) string {
	if i := strings.IndexAny(s, "/:@"); i > 0 {
		return s[:i]
	}
	return s
}

func split(s string, named reference.Named) (Reference, error) {
	r := Reference{Host: reference.Domain(named), Path: reference.Path(named)}
	if t, ok := named.(reference.Tagged); ok {
		r.Tag = t.Tag()
	}
	if d, ok := named.(reference.Digested); ok {
		r.Digest = d.Digest()
		if err := CheckDigest(r.Digest); err != nil {
			return Reference{}, errs.New(errs.InvalidArgument, "image name %q: %w", s, err)
		}
	}
	return r, nil
}

// Name is the host and path, without tag and digest.
func (r Reference) Name() string { return r.Host + "/" + r.Path }

// String is the name in full; Parse reads it back.
func (r Reference) String() string {
	s := r.Name()
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + r.Digest.String()
	}
	return s
}

// Object is what a registry is asked for: the digest if there is one, else the tag.
func (r Reference) Object() string {
	if r.Digest != "" {
		return r.Digest.String()
	}
	return r.Tag
}

// WithDigest is the name of exactly one content: host/path@digest.
func (r Reference) WithDigest(d digest.Digest) Reference {
	return Reference{Host: r.Host, Path: r.Path, Digest: d}
}

// WithTag names the same repository's tag.
func (r Reference) WithTag(tag string) Reference {
	return Reference{Host: r.Host, Path: r.Path, Tag: tag}
}

// Familiar is the shortest name that Normalize reads as the same repository, with
// the tag and digest kept: the form for tables.
func (r Reference) Familiar() string {
	named, err := reference.ParseNormalizedNamed(r.Name())
	if err != nil || named.Name() != r.Name() {
		return r.String()
	}
	f := r
	f.Host, f.Path = "", reference.FamiliarName(named)
	return strings.TrimPrefix(f.String(), "/")
}

var (
	tagPattern = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)
	// OCI image spec 1.1, descriptor.md "Digests": the registered algorithms.
	digestLength = map[string]int{"sha256": 64, "sha384": 96, "sha512": 128}
)

// CheckTag says whether s can be a tag; the error is of kind InvalidArgument.
func CheckTag(s string) error {
	if !tagPattern.MatchString(s) {
		return errs.New(errs.InvalidArgument, "%.140q is not a tag: use up to 128 letters, digits, '_', '.' and '-'", s)
	}
	return nil
}

// CheckDigest says whether d is safe to build a path or URL from: a known
// algorithm, a colon, and exactly its number of lower-case hex digits. Nothing
// that came from outside may become part of a path or URL before it passed here
// (CVE-2024-3727). The error is of kind InvalidArgument.
func CheckDigest(d digest.Digest) error {
	algorithm, hex, _ := strings.Cut(string(d), ":")
	want, known := digestLength[algorithm]
	if !known || len(hex) != want || strings.Trim(hex, "0123456789abcdef") != "" {
		return errs.New(errs.InvalidArgument, "%.150q is not a digest: want sha256:, sha384: or sha512: and all of its lower-case hex digits", string(d))
	}
	return nil
}
