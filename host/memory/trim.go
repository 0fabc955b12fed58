// Package memory gives memory back that a program at rest does not use. It owns
// nothing, starts nothing, and never touches what a program has written.
package memory

import (
	"bytes"
	"os"
	"runtime/debug"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// Trim collects garbage, gives the free heap back, and unmaps the pages of the
// program's own file: they are clean, stay in the page cache, and come back, a few
// at a time, as they are used again. A Go program that has done its work uses a
// tenth of the pages that it touched on the way.
func Trim() {
	debug.FreeOSMemory()
	Unmap()
}

// Unmap is the part of Trim that costs next to nothing. Some time after a Trim it
// takes what the runtime has used once more for its own clearing up.
func Unmap() {
	for _, r := range program() {
		// A hint; a kernel that does not take it has lost nothing (madvise(2)).
		_ = madvise(r)
	}
}

// span is a range of addresses.
type span struct{ from, to uintptr }

// program finds where the program's file is mapped for reading only. What is
// writable is never touched: there MADV_DONTNEED would throw changes away.
var program = sync.OnceValue(func() []span {
	data, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return nil
	}
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return nil
	}
	var out []span
	for line := range bytes.Lines(data) {
		// from-to perms offset device inode path (proc_pid_maps(5))
		f := bytes.Fields(line)
		if len(f) != 6 || string(f[5]) != exe || f[1][0] != 'r' || f[1][1] != '-' || f[1][3] != 'p' {
			continue
		}
		from, to, _ := bytes.Cut(f[0], []byte("-"))
		a, err1 := strconv.ParseUint(string(from), 16, 64)
		b, err2 := strconv.ParseUint(string(to), 16, 64)
		if err1 == nil && err2 == nil && a < b {
			out = append(out, span{uintptr(a), uintptr(b)})
		}
	}
	return out
})

func madvise(r span) error {
	_, _, errno := unix.Syscall(unix.SYS_MADVISE, r.from, r.to-r.from, unix.MADV_DONTNEED)
	if errno != 0 {
		return errno
	}
	return nil
}
