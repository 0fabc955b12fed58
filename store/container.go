package store

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/filter"
	"github.com/berthd/berth/base/id"
	"github.com/berthd/berth/base/label"
)

// Container is metadata: what would run. Whether it runs, its task knows.
type Container struct {
	ID          string
	Image       string // name of the image, may be empty
	Runtime     string // runtime type, as io.containerd.runc.v2
	Options     Any    // of the runtime
	Spec        Any    // OCI runtime spec, kept as given
	Snapshotter string
	SnapshotKey string
	Sandbox     string // id of the sandbox it belongs to
	Labels      map[string]string
	Extensions  map[string]Any
	CreatedAt   time.Time
	UpdatedAt   time.Time
}

const containerColumns = `id, image, runtime, options_url, options, spec_url, spec, snapshotter, snapshot, sandbox, labels, extensions, created, updated`

func scanContainer(s scanner) (c Container, err error) {
	var created, updated int64
	var ext string
	if err = s.Scan(&c.ID, &c.Image, &c.Runtime, &c.Options.TypeURL, &c.Options.Value, &c.Spec.TypeURL, &c.Spec.Value, &c.Snapshotter, &c.SnapshotKey,
		&c.Sandbox, (*labels)(&c.Labels), &ext, &created, &updated); err != nil {
		return c, err
	}
	c.CreatedAt, c.UpdatedAt = at(created), at(updated)
	c.Extensions, err = decodeExtensions(ext)
	return c, err
}

// Fields serves filters.
func (c Container) Fields(path []string) (string, bool) {
	switch path[0] {
	case "id":
		return c.ID, true
	case "image":
		return c.Image, c.Image != ""
	case "runtime":
		if len(path) == 2 && path[1] == "name" {
			return c.Runtime, c.Runtime != ""
		}
	case "labels":
		return filter.Labels(c.Labels, path[1:])
	}
	return "", false
}

func (c Container) check() error {
	if err := id.Check("container id", c.ID); err != nil {
		return err
	}
	switch {
	case c.Runtime == "":
		return errs.New(errs.InvalidArgument, "container %q: the runtime name must be set", c.ID)
	case c.Spec.Empty():
		return errs.New(errs.InvalidArgument, "container %q: the spec must be set", c.ID)
	case c.SnapshotKey != "" && c.Snapshotter == "":
		return errs.New(errs.InvalidArgument, "container %q: a snapshot key needs a snapshotter", c.ID)
	}
	for k := range c.Extensions {
		if k == "" {
			return errs.New(errs.InvalidArgument, "container %q: extension keys must not be empty", c.ID)
		}
	}
	return label.CheckAll(c.Labels)
}

// Container returns one container.
func (tx *Tx) Container(cid string) (Container, error) {
	c, err := one(tx, scanContainer, `SELECT `+containerColumns+` FROM container WHERE ns = ? AND id = ?`, tx.scope.Namespace, cid)
	return c, missing(err, "container %q", cid)
}

// Containers lists those that match, by id.
func (tx *Tx) Containers(filters ...string) ([]Container, error) {
	f, err := filter.Parse(filters...)
	if err != nil {
		return nil, err
	}
	all, err := many(tx, scanContainer, `SELECT `+containerColumns+` FROM container WHERE ns = ? ORDER BY id`, tx.scope.Namespace)
	return keep(all, f), err
}

// CreateContainer stores a new container.
func (tx *Tx) CreateContainer(c Container) (Container, error) {
	if err := c.check(); err != nil {
		return c, err
	}
	there, err := tx.exists(`SELECT 1 FROM container WHERE ns = ? AND id = ?`, tx.scope.Namespace, c.ID)
	if err != nil {
		return c, err
	}
	if there {
		return c, errs.New(errs.AlreadyExists, "container %q: already exists", c.ID)
	}
	c.CreatedAt, c.UpdatedAt, tx.made = tx.now, tx.now, true
	c.Labels = label.Update(nil, c.Labels)
	tx.touchContainer(c)
	tx.emit("/containers/create", ContainerCreate{c.ID, c.Image, c.Runtime, c.Options})
	return c, tx.exec(`INSERT INTO container (ns, `+containerColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`, tx.scope.Namespace, c.ID, c.Image,
		c.Runtime, c.Options.TypeURL, c.Options.Value, c.Spec.TypeURL, c.Spec.Value, c.Snapshotter, c.SnapshotKey, c.Sandbox, encode(c.Labels),
		encodeExtensions(c.Extensions), tx.now.UnixNano(), tx.now.UnixNano())
}

// UpdateContainer changes what paths name: labels, labels.KEY, spec, extensions,
// extensions.KEY, image, snapshotkey. Without paths all of these are replaced;
// snapshotter and runtime can never change.
func (tx *Tx) UpdateContainer(in Container, paths ...string) (Container, error) {
	c, err := tx.Container(in.ID)
	if err != nil {
		return c, err
	}
	if len(paths) == 0 {
		if in.Snapshotter != c.Snapshotter {
			return c, errs.New(errs.InvalidArgument, "container %q: the snapshotter cannot be changed", c.ID)
		}
		if in.Runtime != c.Runtime {
			return c, errs.New(errs.InvalidArgument, "container %q: the runtime cannot be changed", c.ID)
		}
		paths = []string{"labels", "spec", "extensions", "image", "snapshotkey"}
	}
	for _, p := range paths {
		switch field, key := maskField(p); field {
		case "labels":
			c.Labels = maskMap(c.Labels, in.Labels, key)
		case "extensions":
			c.Extensions = maskMap(c.Extensions, in.Extensions, key)
		case "spec":
			c.Spec = in.Spec
		case "image":
			c.Image = in.Image
		case "snapshotkey":
			c.SnapshotKey = in.SnapshotKey
		default:
			return c, badMask("a container", p)
		}
	}
	if err := c.check(); err != nil {
		return c, err
	}
	c.Labels, c.UpdatedAt = label.Update(nil, c.Labels), tx.now
	tx.touchContainer(c)
	tx.emit("/containers/update", ContainerUpdate{c.ID, c.Image, c.SnapshotKey, c.Labels})
	return c, tx.exec(`UPDATE container SET image = ?, spec_url = ?, spec = ?, snapshot = ?, labels = ?, extensions = ?, updated = ? WHERE ns = ? AND id = ?`,
		c.Image, c.Spec.TypeURL, c.Spec.Value, c.SnapshotKey, encode(c.Labels), encodeExtensions(c.Extensions), tx.now.UnixNano(), tx.scope.Namespace, c.ID)
}

// DeleteContainer removes the metadata. A task that still runs is the caller's to
// end first.
func (tx *Tx) DeleteContainer(cid string) error {
	if _, err := tx.Container(cid); err != nil {
		return err
	}
	tx.emit("/containers/delete", ContainerDelete{cid})
	return tx.exec(`DELETE FROM container WHERE ns = ? AND id = ?`, tx.scope.Namespace, cid)
}

// Owner names a container of some namespace.
type Owner struct{ Namespace, ID string }

// ContainersWith lists the containers of every namespace that have a label.
func (tx *Tx) ContainersWith(key string) ([]Owner, error) {
	name, err := json.Marshal(key)
	if err != nil {
		return nil, fmt.Errorf("label %q: %w", key, err)
	}
	return many(tx, func(s scanner) (o Owner, err error) { return o, s.Scan(&o.Namespace, &o.ID) },
		`SELECT ns, id FROM container WHERE instr(labels, ?)`, string(name)+":")
}
