package config

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"
	"time"
)

// Duration is a time as the file writes it: "1m30s".
type Duration time.Duration

// MarshalText writes the duration for TOML.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// Std is the duration as package time knows it.
func (d Duration) Std() time.Duration { return time.Duration(d) }

var durationType = reflect.TypeFor[Duration]()

// decoder fills structs from nodes. It goes on after an error, so that one run
// reports everything that is wrong.
type decoder struct {
	errs    []error
	unknown []origin
	close   []string // for each unknown, the known key that looks most like it
}

func (d *decoder) wrong(n *node, want string) {
	d.errs = append(d.errs, fmt.Errorf("%s: want %s, not %s", n.at, want, kindOf(n)))
}

func kindOf(n *node) string {
	switch {
	case n.table != nil:
		return "a table"
	case n.array:
		return "an array"
	}
	switch v := n.value.(type) {
	case string:
		return fmt.Sprintf("the string %q", v)
	case bool:
		return fmt.Sprintf("the boolean %t", v)
	case int64:
		return fmt.Sprintf("the integer %d", v)
	case float64:
		return fmt.Sprintf("the number %g", v)
	}
	return fmt.Sprintf("%v", n.value)
}

func (d *decoder) decode(n *node, to reflect.Value) {
	if to.Type() == durationType {
		d.duration(n, to)
		return
	}
	switch to.Kind() {
	case reflect.Struct:
		d.structure(n, to)
	case reflect.Map:
		d.mapping(n, to)
	case reflect.Slice:
		d.slice(n, to)
	case reflect.Pointer:
		v := reflect.New(to.Type().Elem())
		d.decode(n, v.Elem())
		to.Set(v)
	case reflect.Interface:
		to.Set(reflect.ValueOf(n.plain()))
	default:
		d.scalar(n, to)
	}
}

func (d *decoder) scalar(n *node, to reflect.Value) {
	switch to.Kind() {
	case reflect.String:
		if s, ok := n.value.(string); ok {
			to.SetString(s)
			return
		}
		d.wrong(n, "a string")
	case reflect.Bool:
		if b, ok := n.value.(bool); ok {
			to.SetBool(b)
			return
		}
		d.wrong(n, "true or false")
	case reflect.Int, reflect.Int32, reflect.Int64:
		if i, ok := n.value.(int64); ok && !to.OverflowInt(i) {
			to.SetInt(i)
			return
		}
		d.wrong(n, "an integer")
	case reflect.Uint32:
		if i, ok := n.value.(int64); ok && i >= 0 && i <= math.MaxUint32 {
			to.SetUint(uint64(i))
			return
		}
		d.wrong(n, "an integer from 0 to 4294967295")
	case reflect.Float64:
		switch v := n.value.(type) {
		case float64:
			to.SetFloat(v)
		case int64:
			to.SetFloat(float64(v))
		default:
			d.wrong(n, "a number")
		}
	default:
		panic("no way to read a " + to.Type().String()) // a new field's type without its line here
	}
}

func (d *decoder) duration(n *node, to reflect.Value) {
	s, ok := n.value.(string)
	if ok && s == "" {
		to.SetInt(0)
		return
	}
	v, err := time.ParseDuration(s)
	if !ok || err != nil || v < 0 {
		d.wrong(n, `a time such as "10s" or "5m"`)
		return
	}
	to.SetInt(int64(v))
}

func (d *decoder) structure(n *node, to reflect.Value) {
	if n.table == nil {
		d.wrong(n, "a table")
		return
	}
	known := map[string]int{}
	rest := -1
	for i := range to.NumField() {
		switch name := fieldName(to.Type().Field(i)); name {
		case "":
		case "*":
			rest = i
		default:
			known[name] = i
		}
	}
	for _, k := range n.keys() {
		i, ok := known[k]
		switch {
		case ok:
			d.decode(n.table[k], to.Field(i))
		case rest >= 0 && n.table[k].table != nil:
			m := to.Field(rest)
			if m.IsNil() {
				m.Set(reflect.MakeMap(m.Type()))
			}
			m.SetMapIndex(reflect.ValueOf(k), reflect.ValueOf(n.table[k].plain()))
		default:
			d.unknown = append(d.unknown, n.table[k].at)
			d.close = append(d.close, nearest(k, slices.Sorted(maps.Keys(known))))
		}
	}
}

// fieldName is the key of a field; "" if it has none, "*" if it takes the tables
// that no other field takes.
func fieldName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("toml"), ",")
	if name == "-" {
		return f.Tag.Get("rest")
	}
	return name
}

func (d *decoder) mapping(n *node, to reflect.Value) {
	if n.table == nil {
		d.wrong(n, "a table")
		return
	}
	if to.IsNil() {
		to.Set(reflect.MakeMap(to.Type()))
	} else { // the defaults are shared
		old := to.Interface()
		to.Set(reflect.MakeMap(to.Type()))
		for it := reflect.ValueOf(old).MapRange(); it.Next(); {
			to.SetMapIndex(it.Key(), it.Value())
		}
	}
	for _, k := range n.keys() {
		v := reflect.New(to.Type().Elem()).Elem()
		if old := to.MapIndex(reflect.ValueOf(k)); old.IsValid() {
			v.Set(old)
		}
		d.decode(n.table[k], v)
		to.SetMapIndex(reflect.ValueOf(k), v)
	}
}

func (d *decoder) slice(n *node, to reflect.Value) {
	if !n.array {
		d.wrong(n, "an array")
		return
	}
	out := reflect.MakeSlice(to.Type(), len(n.list), len(n.list))
	for i, e := range n.list {
		d.decode(e, out.Index(i))
	}
	to.Set(out)
}

func (d *decoder) err() error { return errors.Join(d.errs...) }

// nearest is the known key that a wrong one was most likely meant to be; "" if none
// looks like it.
func nearest(key string, known []string) string {
	best, most := "", len(key)/3+1
	for _, k := range known {
		if n := distance(strings.ToLower(key), strings.ToLower(k)); n < most {
			best, most = k, n
		}
	}
	return best
}

// distance counts the edits between two words (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
