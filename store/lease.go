package store

import (
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/filter"
	"github.com/berthd/berth/base/id"
	"github.com/berthd/berth/base/label"
)

// Lease holds resources back from garbage collection.
type Lease struct {
	ID        string
	Labels    map[string]string // containerd.io/gc.expire, gc.flat
	CreatedAt time.Time
}

// Resource is what a lease can hold.
type Resource struct {
	Type string // content, ingests, images or snapshots/<snapshotter>
	ID   string
}

// The types of resources; a snapshot's is ResourceSnapshot + its snapshotter.
const (
	ResourceContent  = "content"
	ResourceIngest   = "ingests"
	ResourceImage    = "images"
	ResourceSnapshot = "snapshots/"
)

func scanLease(s scanner) (l Lease, err error) {
	var created int64
	err = s.Scan(&l.ID, (*labels)(&l.Labels), &created)
	l.CreatedAt = at(created)
	return l, err
}

// Fields serves filters.
func (l Lease) Fields(path []string) (string, bool) {
	switch path[0] {
	case "id":
		return l.ID, true
	case "labels":
		return filter.Labels(l.Labels, path[1:])
	}
	return "", false
}

// CreateLease makes a lease; an empty id gets a random one.
func (tx *Tx) CreateLease(l Lease) (Lease, error) {
	if l.ID == "" {
		l.ID = id.New(12)
	}
	if err := label.CheckAll(l.Labels); err != nil {
		return l, err
	}
	if exp := l.Labels[label.GCExpire]; exp != "" {
		if _, err := time.Parse(time.RFC3339, exp); err != nil {
			return l, errs.New(errs.InvalidArgument, "lease %q: label %s is not an RFC 3339 time: %v", l.ID, label.GCExpire, err)
		}
	}
	there, err := tx.exists(`SELECT 1 FROM lease WHERE ns = ? AND id = ?`, tx.scope.Namespace, l.ID)
	if err != nil {
		return l, err
	}
	if there {
		return l, errs.New(errs.AlreadyExists, "lease %q: already exists", l.ID)
	}
	l.CreatedAt, tx.made = tx.now, true
	return l, tx.exec(`INSERT INTO lease (ns, id, labels, created) VALUES (?, ?, ?, ?)`, tx.scope.Namespace, l.ID, encode(l.Labels), l.CreatedAt.UnixNano())
}

// DeleteLease lets everything go that the lease holds.
func (tx *Tx) DeleteLease(leaseID string) error {
	if err := tx.leaseThere(leaseID); err != nil {
		return err
	}
	if err := tx.exec(`DELETE FROM lease_resource WHERE ns = ? AND lease = ?`, tx.scope.Namespace, leaseID); err != nil {
		return err
	}
	return tx.exec(`DELETE FROM lease WHERE ns = ? AND id = ?`, tx.scope.Namespace, leaseID)
}

func (tx *Tx) leaseThere(leaseID string) error {
	there, err := tx.exists(`SELECT 1 FROM lease WHERE ns = ? AND id = ?`, tx.scope.Namespace, leaseID)
	if err == nil && !there {
		err = errs.New(errs.NotFound, "lease %q: not found", leaseID)
	}
	return err
}

// Leases lists those that match, by id.
func (tx *Tx) Leases(filters ...string) ([]Lease, error) {
	f, err := filter.Parse(filters...)
	if err != nil {
		return nil, err
	}
	all, err := many(tx, scanLease, `SELECT id, labels, created FROM lease WHERE ns = ? ORDER BY id`, tx.scope.Namespace)
	return keep(all, f), err
}

func checkResource(r Resource) error {
	switch {
	case r.Type == ResourceContent:
		if err := digest.Digest(r.ID).Validate(); err != nil {
			return errs.New(errs.InvalidArgument, "lease resource content %q: %v", r.ID, err)
		}
	case r.Type == ResourceIngest, r.Type == ResourceImage:
	case strings.HasPrefix(r.Type, ResourceSnapshot) && strings.Count(r.Type, "/") == 1 && len(r.Type) > len(ResourceSnapshot):
	case strings.HasPrefix(r.Type, ResourceContent+"/"), strings.HasPrefix(r.Type, ResourceIngest+"/"), strings.HasPrefix(r.Type, ResourceSnapshot):
		return errs.New(errs.InvalidArgument, "lease resource type %q is malformed", r.Type)
	default:
		return errs.New(errs.Unimplemented, "lease resource type %q is not known", r.Type)
	}
	if r.ID == "" {
		return errs.New(errs.InvalidArgument, "lease resource of type %q has no id", r.Type)
	}
	return nil
}

// AddResource puts a resource, there or not, under a lease.
func (tx *Tx) AddResource(leaseID string, r Resource) error {
	if err := tx.leaseThere(leaseID); err != nil {
		return err
	}
	if err := checkResource(r); err != nil {
		return err
	}
	return tx.addResource(leaseID, r)
}

func (tx *Tx) addResource(leaseID string, r Resource) error {
	tx.touch(node{resourceNodes[r.kind()], tx.scope.Namespace, r.key()})
	return tx.exec(`INSERT OR IGNORE INTO lease_resource (ns, lease, type, resource) VALUES (?, ?, ?, ?)`, tx.scope.Namespace, leaseID, r.Type, r.ID)
}

// DeleteResource takes a resource from a lease.
func (tx *Tx) DeleteResource(leaseID string, r Resource) error {
	if err := tx.leaseThere(leaseID); err != nil {
		return err
	}
	if err := checkResource(r); err != nil {
		return err
	}
	return tx.exec(`DELETE FROM lease_resource WHERE ns = ? AND lease = ? AND type = ? AND resource = ?`, tx.scope.Namespace, leaseID, r.Type, r.ID)
}

// Resources lists what a lease holds.
func (tx *Tx) Resources(leaseID string) ([]Resource, error) {
	if err := tx.leaseThere(leaseID); err != nil {
		return nil, err
	}
	return many(tx, func(s scanner) (r Resource, err error) { return r, s.Scan(&r.Type, &r.ID) },
		`SELECT type, resource FROM lease_resource WHERE ns = ? AND lease = ? ORDER BY type, resource`, tx.scope.Namespace, leaseID)
}

// hold puts what was just made under the scope's lease, if it has one.
func (tx *Tx) hold(typ, resource string) error {
	if tx.scope.Lease == "" {
		return nil
	}
	if err := tx.leaseThere(tx.scope.Lease); err != nil {
		return err
	}
	return tx.addResource(tx.scope.Lease, Resource{typ, resource})
}

// Hold puts something that is there under the scope's lease, if it has one.
func (tx *Tx) Hold(r Resource) error {
	tx.touch(node{resourceNodes[r.kind()], tx.scope.Namespace, r.key()})
	return tx.hold(r.Type, r.ID)
}

// kind and key split a snapshot's type so that it can be a node of the graph.
func (r Resource) kind() string {
	if strings.HasPrefix(r.Type, ResourceSnapshot) {
		return ResourceSnapshot
	}
	return r.Type
}

func (r Resource) key() string {
	if sn, ok := strings.CutPrefix(r.Type, ResourceSnapshot); ok {
		return sn + "/" + r.ID
	}
	return r.ID
}
