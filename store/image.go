package store

import (
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/filter"
	"github.com/berthd/berth/base/label"
	"github.com/opencontainers/go-digest"
)

// Image is a name for a descriptor. The name is kept as given: clients normalise.
type Image struct {
	Name      string
	Target    ocispec.Descriptor // media type, digest, size, annotations
	Labels    map[string]string
	CreatedAt time.Time
	UpdatedAt time.Time
}

const imageColumns = `name, media_type, digest, size, annotations, labels, created, updated`

func scanImage(s scanner) (i Image, err error) {
	var created, updated int64
	err = s.Scan(&i.Name, &i.Target.MediaType, &i.Target.Digest, &i.Target.Size, (*labels)(&i.Target.Annotations), (*labels)(&i.Labels), &created, &updated)
	i.CreatedAt, i.UpdatedAt = at(created), at(updated)
	return i, err
}

// Fields serves filters.
func (i Image) Fields(path []string) (string, bool) {
	switch path[0] {
	case "name":
		return i.Name, i.Name != ""
	case "target":
		if len(path) < 2 {
			return "", false
		}
		switch path[1] {
		case "digest":
			return i.Target.Digest.String(), i.Target.Digest != ""
		case "mediatype":
			return i.Target.MediaType, i.Target.MediaType != ""
		}
	case "labels":
		return filter.Labels(i.Labels, path[1:])
	case "annotations":
		return filter.Labels(i.Target.Annotations, path[1:])
	}
	return "", false
}

func (i Image) check() error {
	switch {
	case i.Name == "":
		return errs.New(errs.InvalidArgument, "image name must not be empty")
	case i.Target.Digest.Validate() != nil:
		return errs.New(errs.InvalidArgument, "image %q: target digest %q: %v", i.Name, i.Target.Digest, i.Target.Digest.Validate())
	case i.Target.Size <= 0:
		return errs.New(errs.InvalidArgument, "image %q: target size must be greater than 0", i.Name)
	case i.Target.MediaType == "":
		return errs.New(errs.InvalidArgument, "image %q: target media type must not be empty", i.Name)
	}
	return label.CheckAll(i.Labels)
}

// Image returns one image by its exact name.
func (tx *Tx) Image(name string) (Image, error) {
	i, err := one(tx, scanImage, `SELECT `+imageColumns+` FROM image WHERE ns = ? AND name = ?`, tx.scope.Namespace, name)
	return i, missing(err, "image %q", name)
}

// Images lists those that match, by name.
func (tx *Tx) Images(filters ...string) ([]Image, error) {
	f, err := filter.Parse(filters...)
	if err != nil {
		return nil, err
	}
	all, err := many(tx, scanImage, `SELECT `+imageColumns+` FROM image WHERE ns = ? ORDER BY name`, tx.scope.Namespace)
	return keep(all, f), err
}

// fielded is a row that filters can look into.
type fielded interface {
	Fields(path []string) (string, bool)
}

func keep[T fielded](all []T, f filter.Filter) []T {
	if f.Empty() {
		return all
	}
	var out []T
	for _, v := range all {
		if f.Match(v.Fields) {
			out = append(out, v)
		}
	}
	return out
}

// CreateImage stores a new image under the scope's lease. A CreatedAt that is set
// (reproducible builds) is kept, else it is now.
func (tx *Tx) CreateImage(i Image) (Image, error) {
	if err := i.check(); err != nil {
		return i, err
	}
	there, err := tx.exists(`SELECT 1 FROM image WHERE ns = ? AND name = ?`, tx.scope.Namespace, i.Name)
	if err != nil {
		return i, err
	}
	if there {
		return i, errs.New(errs.AlreadyExists, "image %q: already exists", i.Name)
	}
	if i.CreatedAt.IsZero() {
		i.CreatedAt = tx.now
	}
	i.UpdatedAt = i.CreatedAt
	i.Labels = label.Update(nil, i.Labels)
	tx.made = true
	tx.touchImage(i)
	tx.emit("/images/create", ImageCreate{i.Name, i.Labels})
	if err := tx.exec(`INSERT INTO image (ns, `+imageColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`, tx.scope.Namespace, i.Name, i.Target.MediaType,
		i.Target.Digest.String(), i.Target.Size, encode(i.Target.Annotations), encode(i.Labels), i.CreatedAt.UnixNano(), i.UpdatedAt.UnixNano()); err != nil {
		return i, err
	}
	return i, tx.hold(ResourceImage, i.Name)
}

// UpdateImage changes what paths name (labels, labels.KEY, target, annotations,
// annotations.KEY), or all but the creation time.
func (tx *Tx) UpdateImage(in Image, paths ...string) (Image, error) {
	i, err := tx.Image(in.Name)
	if err != nil {
		return i, err
	}
	if len(paths) == 0 {
		i.Labels, i.Target = in.Labels, in.Target
	}
	for _, p := range paths {
		switch field, key := maskField(p); field {
		case "labels":
			i.Labels = maskMap(i.Labels, in.Labels, key)
		case "target":
			i.Target = in.Target
		case "annotations":
			i.Target.Annotations = maskMap(i.Target.Annotations, in.Target.Annotations, key)
		default:
			return i, badMask("an image", p)
		}
	}
	if err := i.check(); err != nil {
		return i, err
	}
	i.Labels = label.Update(nil, i.Labels)
	if i.UpdatedAt = tx.now; !in.UpdatedAt.IsZero() {
		i.UpdatedAt = in.UpdatedAt
	}
	tx.touchImage(i)
	tx.emit("/images/update", ImageUpdate{i.Name, i.Labels})
	return i, tx.exec(`UPDATE image SET media_type = ?, digest = ?, size = ?, annotations = ?, labels = ?, updated = ? WHERE ns = ? AND name = ?`,
		i.Target.MediaType, i.Target.Digest.String(), i.Target.Size, encode(i.Target.Annotations), encode(i.Labels), i.UpdatedAt.UnixNano(),
		tx.scope.Namespace, i.Name)
}

// PutImage creates the image, or points it to the new target and labels.
func (tx *Tx) PutImage(i Image) (Image, error) {
	out, err := tx.CreateImage(i)
	if errs.Is(err, errs.AlreadyExists) {
		return tx.UpdateImage(i)
	}
	return out, err
}

// DeleteImage removes the name. With target set, only if it still points there.
func (tx *Tx) DeleteImage(name string, target digest.Digest) error {
	i, err := tx.Image(name)
	if err != nil {
		return err
	}
	if target != "" && i.Target.Digest != target {
		return errs.New(errs.NotFound, "image %q now points to %s, not to %s", name, i.Target.Digest, target)
	}
	tx.emit("/images/delete", ImageDelete{name})
	return tx.exec(`DELETE FROM image WHERE ns = ? AND name = ?`, tx.scope.Namespace, name)
}
