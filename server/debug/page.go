package debug

import (
	"bufio"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/berthd/berth/base/tally"
)

// Page is one answer to a scrape, in the text format of Prometheus, version 0.0.4
// (prometheus.io/docs/instrumenting/exposition_formats):
//
//	# HELP name text
//	# TYPE name counter
//	name{label="value"} 42
//
// It is put together by hand because the usual library costs a daemon that nobody
// scrapes 1.5 MiB.
type Page struct {
	families map[string]*family
	order    []string
}

type family struct {
	kind, help string
	lines      []string
}

// Label is one name and value.
type Label struct{ Name, Value string }

var escapeValue = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)

func (p *Page) add(name, kind, help, suffix string, value float64, labels []Label) {
	if p.families == nil {
		p.families = map[string]*family{}
	}
	f := p.families[name]
	if f == nil {
		f = &family{kind: kind, help: help}
		p.families[name] = f
		p.order = append(p.order, name)
	}
	var b strings.Builder
	b.WriteString(name + suffix)
	for i, l := range labels {
		b.WriteByte("{,"[min(i, 1)])
		b.WriteString(l.Name + `="` + escapeValue.Replace(l.Value) + `"`)
	}
	if len(labels) > 0 {
		b.WriteByte('}')
	}
	b.WriteByte(' ')
	b.WriteString(number(value))
	f.lines = append(f.lines, b.String())
}

func number(v float64) string {
	if math.IsInf(v, 1) {
		return "+Inf"
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}

// Counter adds a number that only grows.
func (p *Page) Counter(name, help string, value float64, labels ...Label) {
	p.add(name, "counter", help, "", value, labels)
}

// Gauge adds a number that goes up and down.
func (p *Page) Gauge(name, help string, value float64, labels ...Label) {
	p.add(name, "gauge", help, "", value, labels)
}

// Histogram adds times that were taken, in seconds.
func (p *Page) Histogram(name, help string, s tally.Snapshot, labels ...Label) {
	for i, b := range s.Bounds {
		p.add(name, "histogram", help, "_bucket", float64(s.Counts[i]), append(slices.Clone(labels), Label{"le", number(b)}))
	}
	p.add(name, "histogram", help, "_sum", s.Sum, labels)
	p.add(name, "histogram", help, "_count", float64(s.Count), labels)
}

// WriteTo writes the page, in the order of names.
func (p *Page) WriteTo(w io.Writer) (int64, error) {
	out := bufio.NewWriter(w)
	n := 0
	write := func(parts ...string) {
		for _, s := range parts {
			m, _ := out.WriteString(s) // Flush tells
			n += m
		}
	}
	slices.Sort(p.order)
	for _, name := range p.order {
		f := p.families[name]
		write("# HELP ", name, " ", strings.NewReplacer(`\`, `\\`, "\n", `\n`).Replace(f.help), "\n# TYPE ", name, " ", f.kind, "\n")
		for _, l := range f.lines {
			write(l, "\n")
		}
	}
	return int64(n), out.Flush()
}
