package config

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// node is one value of a file, which remembers where it stood there: a migration
// moves nodes, and a complaint still names the line that its author wrote.
type node struct {
	table map[string]*node // a table, if not nil
	list  []*node          // an array, if list is true
	array bool
	value any // otherwise: string, int64, float64, bool or a date
	at    origin
}

type origin struct {
	file string
	line int
	key  string // as written, with dots
}

func (o origin) String() string {
	if o.line == 0 {
		return fmt.Sprintf("%s: %s", o.file, o.key)
	}
	return fmt.Sprintf("%s:%d: %s", o.file, o.line, o.key)
}

// parse reads a TOML document.
func parse(file string, data []byte) (*node, error) {
	var raw map[string]any
	if err := toml.Unmarshal(data, &raw); err != nil {
		var at *toml.DecodeError
		if errors.As(err, &at) {
			row, col := at.Position()
			return nil, fmt.Errorf("%s:%d:%d: %s", file, row, col, strings.TrimPrefix(at.Error(), "toml: "))
		}
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	lines := keyLines(data)
	return grow(raw, file, nil, lines), nil
}

func grow(v any, file string, path []string, lines map[string]int) *node {
	n := &node{at: origin{file: file, line: lines[strings.Join(path, "\x00")], key: dotted(path)}}
	switch v := v.(type) {
	case map[string]any:
		n.table = map[string]*node{}
		for k, e := range v {
			n.table[k] = grow(e, file, append(slices.Clone(path), k), lines)
		}
	case []any:
		n.array = true
		for i, e := range v {
			c := grow(e, file, append(slices.Clone(path), strconv.Itoa(i)), lines)
			if c.at.line == 0 {
				c.at = n.at
			}
			n.list = append(n.list, c)
		}
	default:
		n.value = v
	}
	return n
}

// keyLines finds the line on which each key first stands. The path of a key is its
// parts with zero bytes between; elements of arrays of tables count as parts.
func keyLines(data []byte) map[string]int {
	lines := map[string]int{}
	arrays := map[string]int{}
	var p unstable.Parser
	p.Reset(data)
	note := func(path []string, n *unstable.Node) {
		key := strings.Join(path, "\x00")
		if _, ok := lines[key]; !ok {
			lines[key] = p.Shape(n.Raw).Start.Line
		}
	}
	var table []string
	for p.NextExpression() {
		e := p.Expression()
		base := table
		if e.Kind != unstable.KeyValue {
			base = nil
		}
		path := slices.Clone(base)
		for it := e.Key(); it.Next(); {
			path = append(path, string(it.Node().Data))
			note(path, it.Node())
			if n, ok := arrays[strings.Join(path, "\x00")]; ok && (e.Kind != unstable.ArrayTable || !it.IsLast()) {
				path = append(path, strconv.Itoa(n))
			}
		}
		switch e.Kind {
		case unstable.ArrayTable:
			key := strings.Join(path, "\x00")
			n, again := arrays[key]
			if again {
				n++
			}
			arrays[key] = n
			table = append(path, strconv.Itoa(n))
		case unstable.Table:
			table = path
		}
	}
	return lines
}

// dotted writes a path as TOML does.
func dotted(path []string) string {
	var b strings.Builder
	for i, p := range path {
		if i > 0 {
			b.WriteByte('.')
		}
		bare := p != "" && strings.IndexFunc(p, func(r rune) bool {
			return !(r == '_' || r == '-' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z')
		}) < 0
		if bare {
			b.WriteString(p)
		} else {
			b.WriteString(strconv.Quote(p))
		}
	}
	return b.String()
}

// get walks down tables; nil if there is nothing.
func (n *node) get(path ...string) *node {
	for _, p := range path {
		if n == nil || n.table == nil {
			return nil
		}
		n = n.table[p]
	}
	return n
}

// take removes and returns what is at path; nil if there is nothing.
func (n *node) take(path ...string) *node {
	parent := n.get(path[:len(path)-1]...)
	last := path[len(path)-1]
	v := parent.get(last)
	if v != nil {
		delete(parent.table, last)
	}
	return v
}

// put places v at path and makes the tables above it. What stands there already is
// merged with v if both are tables, and otherwise wins: it was written under the
// newer name.
func (n *node) put(v *node, path ...string) {
	if v == nil {
		return
	}
	for _, p := range path[:len(path)-1] {
		next := n.table[p]
		if next == nil || next.table == nil {
			next = &node{table: map[string]*node{}, at: v.at}
			n.table[p] = next
		}
		n = next
	}
	last := path[len(path)-1]
	if old := n.table[last]; old != nil {
		if old.table != nil && v.table != nil {
			for k, e := range v.table {
				old.put(e, k)
			}
		}
		return
	}
	n.table[last] = v
}

// move renames a key; the tables that it leaves empty go too.
func (n *node) move(from, to []string) {
	v := n.take(from...)
	if v == nil {
		return
	}
	for end := len(from) - 1; end > 0; end-- {
		if p := n.get(from[:end]...); p != nil && len(p.table) == 0 {
			n.take(from[:end]...)
		}
	}
	n.put(v, to...)
}

// plain gives the value without its origins.
func (n *node) plain() any {
	switch {
	case n.table != nil:
		m := map[string]any{}
		for k, e := range n.table {
			m[k] = e.plain()
		}
		return m
	case n.array:
		out := make([]any, len(n.list))
		for i, e := range n.list {
			out[i] = e.plain()
		}
		return out
	}
	return n.value
}

func (n *node) keys() []string { return slices.Sorted(maps.Keys(n.table)) }

// overlay puts a drop-in file's table over n. At the top, arrays grow by what they do
// not hold yet and the entries of replaced tables come whole from the newer file;
// inside of plugins tables are merged key by key and arrays are replaced.
func (n *node) overlay(over *node) {
	for k, v := range over.table {
		old := n.table[k]
		switch {
		case k == "imports":
		case old == nil:
			n.table[k] = v
		case k == "plugins" && old.table != nil && v.table != nil:
			old.deepen(v)
		case old.table != nil && v.table != nil && entries[k]:
			maps.Copy(old.table, v.table)
		case old.table != nil && v.table != nil:
			old.deepen(v)
		case old.array && v.array:
			for _, e := range v.list {
				if !slices.ContainsFunc(old.list, func(o *node) bool { return o.value == e.value }) {
					old.list = append(old.list, e)
				}
			}
		default:
			n.table[k] = v
		}
	}
}

// entries are the top tables whose entries are replaced as a whole.
var entries = map[string]bool{"proxy_plugins": true, "stream_processors": true, "timeouts": true}

func (n *node) deepen(over *node) {
	for k, v := range over.table {
		if old := n.table[k]; old != nil && old.table != nil && v.table != nil {
			old.deepen(v)
			continue
		}
		n.table[k] = v
	}
}
