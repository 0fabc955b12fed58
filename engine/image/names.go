package image

import (
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/store"
)

// NameRule gives names to what an archive holds.
type NameRule struct {
	Name            string // a full name, or with Prefix what names must start with or get put before
	Prefix          bool
	Overwrite       bool // with Prefix: full names need not start with it
	AddDigest       bool // also name@digest
	SkipNamedDigest bool // but not for images that have a name
}

// nameImages lists the images that an archive's index makes.
func nameImages(root ocispec.Descriptor, x ocispec.Index, r ImportRequest) []store.Image {
	var out []store.Image
	add := func(name string, d ocispec.Descriptor) {
		out = append(out, store.Image{Name: name, Target: target(d), Labels: r.Labels})
	}
	if r.IndexName != "" {
		add(r.IndexName, root)
	}
	for _, rule := range r.Rules {
		if !rule.Prefix {
			name := rule.Name
			if rule.AddDigest {
				name += "@" + root.Digest.String()
			}
			add(name, root)
			continue
		}
		for _, m := range x.Manifests {
			name := rule.nameOf(m.Annotations)
			if name != "" {
				add(name, m)
			}
			if rule.AddDigest && !(rule.SkipNamedDigest && name != "") {
				add(rule.Name+"@"+m.Digest.String(), m)
			}
		}
	}
	return out
}

func target(d ocispec.Descriptor) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
}

// nameOf reads an image's name from its annotations. A full name is taken whole
// or not at all; a bare tag is put behind the rule's name.
func (r NameRule) nameOf(annotations map[string]string) string {
	full := annotations[annotationName]
	name := full
	if name == "" {
		name = annotations[ocispec.AnnotationRefName]
	}
	switch {
	case name == "" || r.Name == "":
		return ""
	case strings.ContainsAny(name, "/:@"):
		if !r.Overwrite && !startsName(name, r.Name) {
			return ""
		}
		return name
	case full != "":
		return "" // incomplete
	}
	return r.Name + ":" + name
}

// startsName reports whether a name is the prefix, or goes on behind it with a
// new part.
func startsName(name, prefix string) bool {
	rest, ok := strings.CutPrefix(name, prefix)
	return ok && (rest == "" || strings.ContainsAny(rest[:1], "/:@"))
}
