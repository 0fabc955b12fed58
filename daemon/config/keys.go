package config

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Key is one key as its documentation shows it.
type Key struct {
	Path    string // with dots; NAME stands for a name of one's own
	Type    string // as TOML calls it; "table" has keys of its own
	Default string // as TOML writes it; "" if it is a table
	Meaning string
}

// Keys lists every key that is known, in the order of the default configuration.
func Keys() []Key {
	var out []Key
	def := Default()
	describe(reflect.ValueOf(def), "", &out)
	return out
}

func describe(v reflect.Value, at string, out *[]Key) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		name := fieldName(f)
		if name == "" || name == "*" {
			continue
		}
		path := at + dotted([]string{name})
		k := Key{Path: path, Meaning: f.Tag.Get("comment")}
		fv := v.Field(i)
		for fv.Kind() == reflect.Pointer {
			fv = reflect.New(fv.Type().Elem()).Elem()
		}
		var inner reflect.Value
		switch {
		case fv.Kind() == reflect.Struct:
			k.Type, inner = "table", fv
		case fv.Kind() == reflect.Map && fv.Type().Elem().Kind() == reflect.Struct:
			k.Type, inner = "table of tables", reflect.New(fv.Type().Elem()).Elem()
			path += ".NAME"
		case fv.Kind() == reflect.Slice && fv.Type().Elem().Kind() == reflect.Struct:
			k.Type, inner = "array of tables", reflect.New(fv.Type().Elem()).Elem()
		default:
			k.Type, k.Default = typeName(fv.Type()), valueText(fv)
		}
		*out = append(*out, k)
		if inner.IsValid() {
			describe(inner, path+".", out)
		}
	}
}

func typeName(t reflect.Type) string {
	if t == durationType {
		return "time"
	}
	switch t.Kind() {
	case reflect.String:
		return "string"
	case reflect.Bool:
		return "boolean"
	case reflect.Float64:
		return "number"
	case reflect.Slice:
		return "array of " + typeName(t.Elem()) + "s"
	case reflect.Map, reflect.Interface:
		return "table"
	}
	return "integer"
}

func valueText(v reflect.Value) string {
	if d, ok := v.Interface().(Duration); ok {
		return `"` + d.Std().String() + `"`
	}
	switch v.Kind() {
	case reflect.String:
		return fmt.Sprintf("%q", v.String())
	case reflect.Slice:
		var all []string
		for i := range v.Len() {
			all = append(all, valueText(v.Index(i)))
		}
		return "[" + strings.Join(all, ", ") + "]"
	case reflect.Map:
		var all []string
		for it := v.MapRange(); it.Next(); {
			all = append(all, fmt.Sprintf("%q = %s", it.Key(), valueText(it.Value())))
		}
		slices.Sort(all)
		return "{" + strings.Join(all, ", ") + "}"
	}
	return fmt.Sprint(v.Interface())
}

// Changes lists the keys that two configurations give different values.
func Changes(a, b Config) ([]string, error) {
	was, err := a.values()
	if err != nil {
		return nil, err
	}
	is, err := b.values()
	if err != nil {
		return nil, err
	}
	out := map[string]bool{}
	for k := range maps.Keys(was) {
		out[k] = was[k] != is[k]
	}
	for k := range maps.Keys(is) {
		out[k] = was[k] != is[k]
	}
	maps.DeleteFunc(out, func(_ string, changed bool) bool { return !changed })
	return slices.Sorted(maps.Keys(out)), nil
}

// values is every key with its value, as text.
func (c Config) values() (map[string]string, error) {
	data, err := c.Print(false)
	if err != nil {
		return nil, err
	}
	n, err := parse("", data)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	n.flatten(nil, out)
	return out, nil
}

func (n *node) flatten(at []string, to map[string]string) {
	if n.table == nil {
		to[dotted(at)] = fmt.Sprintf("%v", n.plain())
		return
	}
	for k, e := range n.table {
		e.flatten(append(slices.Clone(at), k), to)
	}
}

// Value is what a key of Keys has in c, as text, for each name it stands for.
func (c Config) Value(path string) (map[string]string, error) {
	all, err := c.values()
	if err != nil {
		return nil, err
	}
	maps.DeleteFunc(all, func(k, _ string) bool { return !matches(path, k) })
	return all, nil
}

func matches(pattern, key string) bool {
	before, after, named := strings.Cut(pattern, ".NAME.")
	if !named {
		return key == pattern || strings.HasPrefix(key, pattern+".")
	}
	rest, ok := strings.CutPrefix(key, before+".")
	return ok && (strings.HasSuffix(rest, "."+after) || strings.Contains(rest, "."+after+"."))
}

// Migrate gives a file's own text in the newest version: what it does not say, the
// result does not say either.
func Migrate(path string) ([]byte, error) {
	r := reader{seen: map[string]bool{}}
	n, _, err := r.file(path, Newest)
	if err != nil {
		return nil, err
	}
	n.take("plugins", pluginRuntime, "cni", "bin_dir") // bin_dirs says it
	return printTree(n)
}
