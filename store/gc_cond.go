package store

import (
	"strings"
	"time"

	"github.com/berthd/berth/base/label"
)

// condition keeps a thing alive for the sake of a snapshot, while that was used
// recently enough, or long enough ago:
//
//	containerd.io/gc.cond.snapshot.<snapshotter>[/…] = usedat<24h[,usedat>…]|<name>
//
// on content and images; on the snapshot, containerd.io/gc.cond.value-usedat is the
// time. Conditions with commas between are alternatives. What cannot be read holds
// nothing.
type condition struct {
	thing, snapshot node
	younger         bool // usedat<age, else usedat>age
	age             time.Duration
}

func conditions(n node, labels map[string]string) (out []condition) {
	for k, v := range labels {
		rest, ok := strings.CutPrefix(k, label.GCCondSnapshot)
		if !ok {
			continue
		}
		sn, _, _ := strings.Cut(rest, "/")
		all, name, ok := strings.Cut(v, "|")
		if !ok || sn == "" || name == "" {
			continue
		}
		for c := range strings.SplitSeq(all, ",") {
			rest, ok := strings.CutPrefix(c, "usedat")
			if !ok || rest == "" || rest[0] != '<' && rest[0] != '>' {
				continue // other operators and names are reserved
			}
			age, err := time.ParseDuration(rest[1:])
			if err != nil {
				continue
			}
			out = append(out, condition{n, node{nodeSnapshot, n.ns, sn + "/" + name}, rest[0] == '<', age})
		}
	}
	return out
}

// settle turns the conditions that are met into edges; every value is known by then.
func (g *graph) settle() {
	for _, c := range g.conditions {
		used, ok := g.used[c.snapshot]
		if !ok {
			continue
		}
		if age := g.now.Sub(used); c.younger && age < c.age || !c.younger && age > c.age {
			g.edge(c.snapshot, c.thing)
		}
	}
}

// noteUsed reads when a snapshot was used, for the conditions of others.
func (g *graph) noteUsed(n node, labels map[string]string) {
	if t, err := time.Parse(time.RFC3339, labels[label.GCCondUsedAt]); err == nil {
		g.used[n] = t
	}
}
