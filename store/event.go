package store

import "time"

// Event says that something changed. It is made inside a transaction and goes out
// after its commit; engine/event gives it its wire form.
type Event struct {
	Namespace string
	Topic     string // as "/images/create"
	Body      any    // one of the structs below
	At        time.Time
}

// The bodies, one for each topic.
type (
	NamespaceCreate struct {
		Name   string
		Labels map[string]string
	}
	NamespaceUpdate NamespaceCreate
	NamespaceDelete struct{ Name string }

	ImageCreate struct {
		Name   string
		Labels map[string]string
	}
	ImageUpdate ImageCreate
	ImageDelete struct{ Name string }

	ContentCreate struct {
		Digest string
		Size   int64
	}
	ContentDelete struct{ Digest string }

	SnapshotPrepare struct{ Key, Parent, Snapshotter string }
	SnapshotCommit  struct{ Key, Name, Snapshotter string }
	SnapshotRemove  struct{ Key, Snapshotter string }

	ContainerCreate struct {
		ID, Image, Runtime string
		Options            Any
	}
	ContainerUpdate struct {
		ID, Image, SnapshotKey string
		Labels                 map[string]string
	}
	ContainerDelete struct{ ID string }
)
