package store

import (
	"strings"
	"sync"
	"time"

	"github.com/berthd/berth/base/label"
)

// node is one thing that garbage collection knows.
type node struct {
	typ nodeType
	ns  string
	key string // a snapshot's is <snapshotter>/<name>
}

type nodeType uint8

const (
	nodeContent nodeType = iota + 1
	nodeSnapshot
	nodeImage
	nodeContainer
	nodeSandbox
	nodeIngest
	nodeLease
)

var resourceNodes = map[string]nodeType{
	ResourceContent: nodeContent, ResourceIngest: nodeIngest, ResourceImage: nodeImage, ResourceSnapshot: nodeSnapshot,
}

// touchSet remembers, while a collection runs or is to come, what transactions made,
// changed or pointed to: none of that may be collected, whatever the mark sees.
type touchSet struct {
	sync.Mutex
	active bool
	nodes  map[node]bool
	starts int
}

func (t *touchSet) start() {
	t.Lock()
	defer t.Unlock()
	t.active, t.nodes = true, map[node]bool{}
	t.starts++
}

// stopAt stops unless it was started again since it counted so many starts.
func (t *touchSet) stopAt(starts int) {
	t.Lock()
	defer t.Unlock()
	if t.starts == starts {
		t.active, t.nodes = false, nil
	}
}

func (t *touchSet) count() int {
	t.Lock()
	defer t.Unlock()
	return t.starts
}

func (t *touchSet) stop() {
	t.Lock()
	defer t.Unlock()
	t.active, t.nodes = false, nil
}

func (t *touchSet) add(nodes []node) {
	t.Lock()
	defer t.Unlock()
	if t.active {
		for _, n := range nodes {
			t.nodes[n] = true
		}
	}
}

func (t *touchSet) list() []node {
	t.Lock()
	defer t.Unlock()
	out := make([]node, 0, len(t.nodes))
	for n := range t.nodes {
		out = append(out, n)
	}
	return out
}

func (tx *Tx) touch(n node) { tx.touched = append(tx.touched, n) }

func (tx *Tx) touchRefs(labels map[string]string) {
	tx.touched = append(tx.touched, references(tx.scope.Namespace, labels)...)
}

func (tx *Tx) touchContent(c Content) {
	tx.touch(node{nodeContent, tx.scope.Namespace, c.Digest.String()})
	tx.touchRefs(c.Labels)
}

func (tx *Tx) touchImage(i Image) {
	tx.touch(node{nodeImage, tx.scope.Namespace, i.Name})
	tx.touch(node{nodeContent, tx.scope.Namespace, i.Target.Digest.String()})
	tx.touchRefs(i.Labels)
}

func (tx *Tx) touchSnapshot(s Snapshot) {
	tx.touch(node{nodeSnapshot, tx.scope.Namespace, s.Snapshotter + "/" + s.Name})
	if s.Parent != "" {
		tx.touch(node{nodeSnapshot, tx.scope.Namespace, s.Snapshotter + "/" + s.Parent})
	}
	tx.touchRefs(s.Labels)
}

func (tx *Tx) touchContainer(c Container) {
	if c.SnapshotKey != "" {
		tx.touch(node{nodeSnapshot, tx.scope.Namespace, c.Snapshotter + "/" + c.SnapshotKey})
	}
	tx.touchRefs(c.Labels)
}

// isRef reports whether a label key is base itself or base with a free suffix.
func isRef(key, base string) bool {
	rest, ok := strings.CutPrefix(key, base)
	return ok && (rest == "" || rest[0] == '.' || rest[0] == '/')
}

// references are the forward edges that labels make (containerd.io/gc.ref.*).
func references(ns string, labels map[string]string) []node {
	var out []node
	for k, v := range labels {
		if v == "" || !strings.HasPrefix(k, label.GCRef) {
			continue
		}
		switch {
		case isRef(k, label.GCRefContent):
			out = append(out, node{nodeContent, ns, v})
		case isRef(k, label.GCRefImage):
			out = append(out, node{nodeImage, ns, v})
		default:
			if sn, ok := label.Snapshotter(k); ok {
				out = append(out, node{nodeSnapshot, ns, sn + "/" + v})
			}
		}
	}
	return out
}

// backReferences are the things that keep this one alive (containerd.io/gc.bref.*).
func backReferences(ns string, labels map[string]string) []node {
	var out []node
	for k, v := range labels {
		rest, ok := strings.CutPrefix(k, label.GCBref)
		if !ok || v == "" {
			continue
		}
		switch {
		case isRef(rest, "container"):
			out = append(out, node{nodeContainer, ns, v})
		case isRef(rest, "content"):
			out = append(out, node{nodeContent, ns, v})
		case isRef(rest, "image"):
			out = append(out, node{nodeImage, ns, v})
		case strings.HasPrefix(rest, "snapshot."):
			sn, _, _ := strings.Cut(strings.TrimPrefix(rest, "snapshot."), "/")
			out = append(out, node{nodeSnapshot, ns, sn + "/" + v})
		}
	}
	return out
}

// graph is everything that can hold or be garbage, at one moment.
type graph struct {
	edges   map[node][]node
	parents map[node]node // snapshots, followed also for flat leases
	roots   []node
	flat    []node
	garbage map[node]bool // candidates: what may go unless something reaches it
	now     time.Time

	conditions []condition
	used       map[node]time.Time // by snapshot
}

func (g *graph) edge(from, to node) { g.edges[from] = append(g.edges[from], to) }

// add puts a thing with labels into the graph.
func (g *graph) add(n node, labels map[string]string) {
	for _, to := range references(n.ns, labels) {
		g.edge(n, to)
	}
	for _, from := range backReferences(n.ns, labels) {
		g.edge(from, n)
	}
	switch n.typ {
	case nodeContent, nodeImage:
		g.conditions = append(g.conditions, conditions(n, labels)...)
	case nodeSnapshot:
		g.noteUsed(n, labels)
	}
}

// expired reports a gc.expire label whose time has come; set says there is one. A
// time that cannot be read never comes.
func expired(labels map[string]string, now time.Time) (set, past bool) {
	v, set := labels[label.GCExpire]
	if !set {
		return false, false
	}
	t, err := time.Parse(time.RFC3339, v)
	return true, err == nil && now.After(t)
}

func (tx *Tx) loadGraph() (*graph, error) {
	g := &graph{edges: map[node][]node{}, parents: map[node]node{}, garbage: map[node]bool{}, used: map[node]time.Time{}, now: tx.now}
	for _, load := range []func(*graph) error{tx.loadContent, tx.loadSnapshots, tx.loadImages, tx.loadOwners, tx.loadLeases, tx.loadIngests} {
		if err := load(g); err != nil {
			return nil, err
		}
	}
	g.settle()
	return g, nil
}

type labelled struct {
	ns, key, more string
	labels        map[string]string
	num           int64
}

func scanLabelled(s scanner) (l labelled, err error) {
	return l, s.Scan(&l.ns, &l.key, &l.more, (*labels)(&l.labels), &l.num)
}

// held reports whether a thing is a root by its own labels.
func held(labels map[string]string, now time.Time) bool {
	set, past := expired(labels, now)
	return labels[label.GCRoot] != "" || set && !past
}

func (tx *Tx) loadContent(g *graph) error {
	rows, err := many(tx, scanLabelled, `SELECT ns, digest, '', labels, 0 FROM content`)
	for _, r := range rows {
		n := node{nodeContent, r.ns, r.key}
		g.add(n, r.labels)
		g.garbage[n] = true
		if held(r.labels, g.now) {
			g.roots = append(g.roots, n)
		}
	}
	return err
}

func (tx *Tx) loadSnapshots(g *graph) error {
	rows, err := many(tx, scanLabelled, `SELECT s.ns, s.snapshotter || '/' || s.name, coalesce(p.snapshotter || '/' || p.name, ''), s.labels, s.state = 'ready'
		FROM snapshot s LEFT JOIN snapshot p ON p.id = s.parent`)
	for _, r := range rows {
		n := node{nodeSnapshot, r.ns, r.key}
		g.add(n, r.labels)
		if r.more != "" {
			g.parents[n] = node{nodeSnapshot, r.ns, r.more}
			g.edge(n, g.parents[n])
		}
		if r.num == 0 || held(r.labels, g.now) { // one that is being made is nobody's garbage
			g.roots = append(g.roots, n)
		} else {
			g.garbage[n] = true
		}
	}
	return err
}

func (tx *Tx) loadImages(g *graph) error {
	rows, err := many(tx, scanLabelled, `SELECT ns, name, digest, labels, 0 FROM image`)
	for _, r := range rows {
		n := node{nodeImage, r.ns, r.key}
		g.add(n, r.labels)
		g.edge(n, node{nodeContent, r.ns, r.more})
		if _, past := expired(r.labels, g.now); past {
			g.garbage[n] = true
		} else {
			g.roots = append(g.roots, n)
		}
	}
	return err
}

func (tx *Tx) loadOwners(g *graph) error {
	rows, err := many(tx, scanLabelled, `SELECT ns, id, CASE WHEN snapshot = '' THEN '' ELSE snapshotter || '/' || snapshot END, labels, 0 FROM container`)
	if err != nil {
		return err
	}
	for _, r := range rows {
		n := node{nodeContainer, r.ns, r.key}
		g.add(n, r.labels)
		g.roots = append(g.roots, n)
		if r.more != "" {
			g.edge(n, node{nodeSnapshot, r.ns, r.more})
		}
	}
	rows, err = many(tx, scanLabelled, `SELECT ns, id, '', labels, 0 FROM sandbox`)
	for _, r := range rows {
		n := node{nodeSandbox, r.ns, r.key}
		g.add(n, r.labels)
		g.roots = append(g.roots, n)
	}
	return err
}

func (tx *Tx) loadLeases(g *graph) error {
	rows, err := many(tx, scanLabelled, `SELECT ns, id, '', labels, 0 FROM lease`)
	if err != nil {
		return err
	}
	flat := map[node]bool{}
	for _, r := range rows {
		n := node{nodeLease, r.ns, r.key}
		if _, past := expired(r.labels, g.now); past {
			g.garbage[n] = true
			continue
		}
		_, flat[n] = r.labels[label.GCFlat]
	}
	rows, err = many(tx, scanLabelled, `SELECT ns, lease, type || char(10) || resource, '{}', 0 FROM lease_resource`)
	for _, r := range rows {
		isFlat, live := flat[node{nodeLease, r.ns, r.key}]
		if !live {
			continue
		}
		typ, id, _ := strings.Cut(r.more, "\n")
		res := Resource{typ, id}
		n := node{resourceNodes[res.kind()], r.ns, res.key()}
		if isFlat {
			g.flat = append(g.flat, n)
		} else {
			g.roots = append(g.roots, n)
		}
	}
	return err
}

func (tx *Tx) loadIngests(g *graph) error {
	rows, err := many(tx, scanLabelled, `SELECT ns, ref, '', '{}', expires FROM ingest`)
	for _, r := range rows {
		n := node{nodeIngest, r.ns, r.key}
		if r.num == 0 || tx.now.UnixNano() > r.num {
			g.garbage[n] = true
		}
	}
	return err
}

// mark takes out of the garbage all that the nodes reach.
func (g *graph) mark(from []node) {
	seen := map[node]bool{}
	stack := append([]node(nil), from...)
	for len(stack) > 0 {
		n := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if seen[n] {
			continue
		}
		seen[n] = true
		delete(g.garbage, n)
		stack = append(stack, g.edges[n]...)
	}
}

// markFlat keeps what a flat lease lists, and under snapshots their parents, but
// follows no labels.
func (g *graph) markFlat() {
	for _, n := range g.flat {
		for ok := true; ok; n, ok = g.next(n) {
			delete(g.garbage, n)
		}
	}
}

func (g *graph) next(n node) (node, bool) {
	p, ok := g.parents[n]
	return p, ok
}
