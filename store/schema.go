package store

// The database, as version 1 makes it. Times are nanoseconds since 1970, labels
// and other maps are JSON objects, payloads (Any) are a type URL and its bytes.
//
//	namespace 1──n image      name -> target descriptor
//	          1──n content    digest of a blob that this namespace may see
//	          1──n ingest     ref -> file that grows into a blob
//	          1──n snapshot   name -> id of a driver's directory; parent -> snapshot
//	          1──n container  metadata; snapshotter + snapshot name
//	          1──n sandbox
//	          1──n lease 1──n lease_resource
//	          1──n pod 1──n pod_container   what CRI adds to a sandbox and a container
//	          1──1 task       of a container: where its shim is
//	          1──1 box        of a sandbox that a shim holds: where that is
//	trash                     what no row wants any more and is still on disk
//	meta                      format version, boot id
//
// boot: NULL where the bytes behind a row are known to be on the disk; else the
// boot id of the kernel whose page cache holds them. After another boot such a
// row promises nothing, and is torn down (see boot.go).
//
// state: 'creating' before the thing is made in the world, 'ready' after.
const schema = `
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;

CREATE TABLE namespace (
	name    TEXT PRIMARY KEY,
	labels  TEXT NOT NULL DEFAULT '{}',
	created INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE image (
	ns          TEXT NOT NULL,
	name        TEXT NOT NULL,
	media_type  TEXT NOT NULL,
	digest      TEXT NOT NULL,
	size        INTEGER NOT NULL,
	annotations TEXT NOT NULL DEFAULT '{}',
	labels      TEXT NOT NULL DEFAULT '{}',
	created     INTEGER NOT NULL,
	updated     INTEGER NOT NULL,
	PRIMARY KEY (ns, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE content (
	ns      TEXT NOT NULL,
	digest  TEXT NOT NULL,
	size    INTEGER NOT NULL,
	labels  TEXT NOT NULL DEFAULT '{}',
	created INTEGER NOT NULL,
	updated INTEGER NOT NULL,
	boot    TEXT,
	PRIMARY KEY (ns, digest)
) STRICT, WITHOUT ROWID;
CREATE INDEX content_digest ON content (digest);
CREATE INDEX content_boot ON content (boot) WHERE boot IS NOT NULL;

CREATE TABLE ingest (
	ns       TEXT NOT NULL,
	ref      TEXT NOT NULL,
	id       TEXT NOT NULL UNIQUE,
	total    INTEGER NOT NULL,
	expected TEXT NOT NULL DEFAULT '',
	started  INTEGER NOT NULL,
	expires  INTEGER NOT NULL DEFAULT 0,
	PRIMARY KEY (ns, ref)
) STRICT, WITHOUT ROWID;

CREATE TABLE snapshot (
	id          INTEGER PRIMARY KEY AUTOINCREMENT,
	ns          TEXT NOT NULL,
	snapshotter TEXT NOT NULL,
	name        TEXT NOT NULL,
	parent      INTEGER REFERENCES snapshot (id),
	kind        INTEGER NOT NULL,
	state       TEXT NOT NULL CHECK (state IN ('creating', 'ready')),
	labels      TEXT NOT NULL DEFAULT '{}',
	created     INTEGER NOT NULL,
	updated     INTEGER NOT NULL,
	size        INTEGER NOT NULL DEFAULT 0,
	inodes      INTEGER NOT NULL DEFAULT 0,
	boot        TEXT,
	UNIQUE (ns, snapshotter, name)
) STRICT;
CREATE INDEX snapshot_parent ON snapshot (parent);
CREATE INDEX snapshot_boot ON snapshot (boot) WHERE boot IS NOT NULL;

CREATE TABLE container (
	ns          TEXT NOT NULL,
	id          TEXT NOT NULL,
	image       TEXT NOT NULL DEFAULT '',
	runtime     TEXT NOT NULL,
	options_url TEXT NOT NULL DEFAULT '',
	options     BLOB,
	spec_url    TEXT NOT NULL DEFAULT '',
	spec        BLOB,
	snapshotter TEXT NOT NULL DEFAULT '',
	snapshot    TEXT NOT NULL DEFAULT '',
	sandbox     TEXT NOT NULL DEFAULT '',
	labels      TEXT NOT NULL DEFAULT '{}',
	extensions  TEXT NOT NULL DEFAULT '{}',
	created     INTEGER NOT NULL,
	updated     INTEGER NOT NULL,
	PRIMARY KEY (ns, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE sandbox (
	ns          TEXT NOT NULL,
	id          TEXT NOT NULL,
	sandboxer   TEXT NOT NULL DEFAULT '',
	runtime     TEXT NOT NULL DEFAULT '',
	options_url TEXT NOT NULL DEFAULT '',
	options     BLOB,
	spec_url    TEXT NOT NULL DEFAULT '',
	spec        BLOB,
	labels      TEXT NOT NULL DEFAULT '{}',
	extensions  TEXT NOT NULL DEFAULT '{}',
	created     INTEGER NOT NULL,
	updated     INTEGER NOT NULL,
	PRIMARY KEY (ns, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE lease (
	ns      TEXT NOT NULL,
	id      TEXT NOT NULL,
	labels  TEXT NOT NULL DEFAULT '{}',
	created INTEGER NOT NULL,
	PRIMARY KEY (ns, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE lease_resource (
	ns       TEXT NOT NULL,
	lease    TEXT NOT NULL,
	type     TEXT NOT NULL,
	resource TEXT NOT NULL,
	PRIMARY KEY (ns, lease, type, resource)
) STRICT, WITHOUT ROWID;

CREATE TABLE task (
	ns      TEXT NOT NULL,
	id      TEXT NOT NULL,
	runtime TEXT NOT NULL,
	state   TEXT NOT NULL CHECK (state IN ('creating', 'ready', 'removing')),
	boot    TEXT NOT NULL,
	created INTEGER NOT NULL,
	body    TEXT NOT NULL DEFAULT '{}',
	PRIMARY KEY (ns, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE pod (
	ns      TEXT NOT NULL,
	id      TEXT NOT NULL,
	name    TEXT NOT NULL,
	state   TEXT NOT NULL CHECK (state IN ('creating', 'ready', 'stopped', 'removing')),
	boot    TEXT NOT NULL,
	handler TEXT NOT NULL,
	created INTEGER NOT NULL,
	config  BLOB NOT NULL,
	body    BLOB NOT NULL,
	PRIMARY KEY (ns, id)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX pod_name ON pod (ns, name);

CREATE TABLE pod_container (
	ns      TEXT NOT NULL,
	id      TEXT NOT NULL,
	pod     TEXT NOT NULL,
	name    TEXT NOT NULL,
	state   TEXT NOT NULL CHECK (state IN ('creating', 'created', 'running', 'exited', 'removing')),
	boot    TEXT NOT NULL,
	created INTEGER NOT NULL,
	config  BLOB NOT NULL,
	body    BLOB NOT NULL,
	PRIMARY KEY (ns, id)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX pod_container_name ON pod_container (ns, pod, name);

CREATE TABLE trash (
	type     TEXT NOT NULL CHECK (type IN ('blob', 'snapshot')),
	resource TEXT NOT NULL,
	PRIMARY KEY (type, resource)
) STRICT, WITHOUT ROWID;
`

// migrations lead from each format version to the next; the first entry makes
// version 1. A database of a newer version is refused, never rewritten.
var migrations = []string{schema, boxes}

// boxes has a row for each sandbox that a shim holds; the columns are those of task.
const boxes = `
CREATE TABLE box (
	ns      TEXT NOT NULL,
	id      TEXT NOT NULL,
	runtime TEXT NOT NULL,
	state   TEXT NOT NULL CHECK (state IN ('creating', 'ready', 'removing')),
	boot    TEXT NOT NULL,
	created INTEGER NOT NULL,
	body    TEXT NOT NULL DEFAULT '{}',
	PRIMARY KEY (ns, id)
) STRICT, WITHOUT ROWID;
`
