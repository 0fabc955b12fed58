// Package table prints lists of things for people and programs: aligned columns,
// JSON lines, or a Go template over each row, as users of Docker know them. It
// knows nothing of what a row is.
package table

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"strings"
	"text/tabwriter"
	"text/template"
)

// Column is one column of the default table: its head and the field of a row that
// it shows.
type Column struct{ Head, Field string }

// Columns reads columns written as "HEAD=Field"; a head alone names the field of
// the same letters with a capital first one.
func Columns(all ...string) []Column {
	out := make([]Column, 0, len(all))
	for _, s := range all {
		head, field, ok := strings.Cut(s, "=")
		if !ok {
			field = head[:1] + strings.ToLower(head[1:])
		}
		out = append(out, Column{head, field})
	}
	return out
}

// Write prints rows, which are structs. format is "", "table", "json", "table
// TEMPLATE" or TEMPLATE.
func Write[T any](w io.Writer, rows []T, format string, columns []Column) error {
	switch format {
	case "json":
		e := json.NewEncoder(w)
		e.SetEscapeHTML(false)
		for _, r := range rows {
			if err := e.Encode(r); err != nil {
				return err
			}
		}
		return nil
	case "", "table":
		return aligned(w, rows, columns)
	}
	text, tabled := strings.CutPrefix(format, "table ")
	t, err := Parse(text)
	if err != nil {
		return err
	}
	if !tabled {
		for _, r := range rows {
			if err := Execute(w, t, r); err != nil {
				return err
			}
		}
		return nil
	}
	tw := newTab(w)
	if err := Execute(tw, t, heads[T](columns)); err != nil {
		return err
	}
	for _, r := range rows {
		if err := Execute(tw, t, r); err != nil {
			return err
		}
	}
	return tw.Flush()
}

func newTab(w io.Writer) *tabwriter.Writer { return tabwriter.NewWriter(w, 10, 1, 3, ' ', 0) }

func aligned[T any](w io.Writer, rows []T, columns []Column) error {
	tw := newTab(w)
	line := func(cell func(Column) string) {
		cells := make([]string, len(columns))
		for i, c := range columns {
			cells[i] = printable(cell(c))
		}
		fmt.Fprintln(tw, strings.TrimRight(strings.Join(cells, "\t"), "\t "))
	}
	line(func(c Column) string { return c.Head })
	for _, r := range rows {
		v := reflect.Indirect(reflect.ValueOf(r))
		line(func(c Column) string { return fmt.Sprint(v.FieldByName(c.Field).Interface()) })
	}
	return tw.Flush()
}

// printable keeps what came from outside from steering a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

// heads is the row that a "table TEMPLATE" begins with: each field holds its head.
func heads[T any](columns []Column) map[string]string {
	out := map[string]string{}
	t := reflect.TypeFor[T]()
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	for i := range t.NumField() {
		out[t.Field(i).Name] = strings.ToUpper(t.Field(i).Name)
	}
	for _, c := range columns {
		out[c.Field] = c.Head
	}
	return out
}

var functions = template.FuncMap{
	"json": func(v any) (string, error) {
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		err := e.Encode(v)
		return strings.TrimSuffix(b.String(), "\n"), err
	},
	"lower": strings.ToLower, "upper": strings.ToUpper, "split": strings.Split,
	"join": strings.Join, "println": fmt.Sprintln,
	"truncate": func(s string, n int) string { return s[:min(len(s), max(n, 0))] },
}

// Parse reads a template; \t and \n may be written as such.
func Parse(text string) (*template.Template, error) {
	text = strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(text)
	t, err := template.New("format").Funcs(functions).Option("missingkey=error").Parse(text)
	if err != nil {
		return nil, fmt.Errorf("--format: %w", err)
	}
	return t, nil
}

// Execute prints one row and ends the line.
func Execute(w io.Writer, t *template.Template, row any) error {
	var b bytes.Buffer
	if err := t.Execute(&b, row); err != nil {
		return fmt.Errorf("--format: %w", err)
	}
	b.WriteByte('\n')
	_, err := w.Write(b.Bytes())
	return err
}
