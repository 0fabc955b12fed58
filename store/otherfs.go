package store

import "golang.org/x/sys/unix"

// otherFS reports whether b is on another file system than a.
func otherFS(a, b string) (bool, error) {
	var sa, sb unix.Stat_t
	if err := unix.Stat(a, &sa); err != nil {
		return false, err
	}
	if err := unix.Stat(b, &sb); err != nil {
		return false, err
	}
	return sa.Dev != sb.Dev, nil
}
