package store

import (
	"strings"

	"github.com/berthd/berth/base/errs"
)

// maskField splits an update mask's path at its first dot: everything behind it
// is a key, and may hold dots itself.
func maskField(path string) (field, key string) {
	field, key, _ = strings.Cut(path, ".")
	return field, key
}

// maskMap applies one mask path to a map: the whole map, or the one key. An
// absent key in the input writes the zero value, which for labels removes it.
func maskMap[V any](old, in map[string]V, key string) map[string]V {
	if key == "" {
		return in
	}
	out := make(map[string]V, len(old)+1)
	for k, v := range old {
		out[k] = v
	}
	out[key] = in[key]
	return out
}

func badMask(what, path string) error {
	return errs.New(errs.InvalidArgument, "cannot update field %q of %s", path, what)
}
