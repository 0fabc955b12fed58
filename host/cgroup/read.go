package cgroup

import (
	"bytes"
	"math"
	"path/filepath"
	"strconv"
	"syscall"
)

// reader reads the small files of a group into one buffer, over and over: a
// kubelet asks for statistics again and again, and each byte of garbage stays in
// the shim until its next collection.
type reader struct{ buf []byte }

// read returns the file's content, valid until the next call; nil if there is no
// such file or it cannot be read: what a kernel does not count is zero.
func (r *reader) read(dir, name string) []byte {
	fd, err := syscall.Open(filepath.Join(dir, name), syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer func() { _ = syscall.Close(fd) }()
	if r.buf == nil {
		r.buf = make([]byte, 8192)
	}
	n := 0
	for {
		if n == len(r.buf) {
			if n >= 1<<20 {
				return nil
			}
			r.buf = append(r.buf, make([]byte, n)...)
		}
		m, err := syscall.Read(fd, r.buf[n:])
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return nil
		}
		if m == 0 {
			return r.buf[:n]
		}
		n += m
	}
}

// number reads a file that holds one number; the word "max" becomes top.
func (r *reader) number(dir, name string, top uint64) uint64 {
	return number(bytes.TrimSpace(r.read(dir, name)), top)
}

func number(word []byte, top uint64) uint64 {
	if string(word) == "max" {
		return top
	}
	v, err := strconv.ParseUint(string(word), 10, 64)
	if err != nil {
		return 0 // also for -1 and the like
	}
	return v
}

// pairs calls fn for each "key value" line.
func pairs(data []byte, fn func(key []byte, v uint64)) {
	for line := range bytes.Lines(data) {
		key, value, ok := bytes.Cut(bytes.TrimSpace(line), []byte{' '})
		if ok {
			fn(key, number(bytes.TrimSpace(value), math.MaxUint64))
		}
	}
}

// table fills dst with the values of the "key value" lines that names lists.
func table(data []byte, names []string, dst []uint64) {
	pairs(data, func(key []byte, v uint64) {
		for i, n := range names {
			if n == string(key) {
				dst[i] = v
				return
			}
		}
	})
}
