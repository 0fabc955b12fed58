package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// OOM tells of processes that the kernel killed for want of memory. It holds its
// files open from before the container starts, so that the news of the last
// moment is not lost when somebody else removes the group.
//
//	version 1   eventfd on memory.oom_control; the counter is its line oom_kill
//	version 2   inotify on memory.events; the counter is its line oom_kill
//
// An event alone proves nothing (version 1 also sends one to the siblings of the
// group that ran out, and one when the group is removed): only the counter does.
type OOM struct {
	events  *os.File // eventfd or inotify
	counter *os.File // memory.oom_control or memory.events
}

// WatchOOM starts to watch the group.
func (g *Group) WatchOOM() (*OOM, error) {
	if g.unified {
		return watchV2(filepath.Join(g.dirs[""], "memory.events"))
	}
	if g.dirs["memory"] == "" {
		return nil, errors.New("watch for out of memory: the container has no memory cgroup")
	}
	return watchV1(g.dirs["memory"])
}

func watchV1(dir string) (*OOM, error) {
	control, err := os.Open(filepath.Join(dir, "memory.oom_control"))
	if err != nil {
		return nil, fmt.Errorf("watch for out of memory: %w", err)
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		_ = control.Close()
		return nil, fmt.Errorf("make eventfd: %w", err)
	}
	o := &OOM{events: os.NewFile(uintptr(fd), "eventfd"), counter: control}
	line := strconv.Itoa(fd) + " " + strconv.Itoa(int(control.Fd()))
	if err := os.WriteFile(filepath.Join(dir, "cgroup.event_control"), []byte(line), 0); err != nil {
		o.Close()
		return nil, fmt.Errorf("watch for out of memory: %w", err)
	}
	return o, nil
}

func watchV2(file string) (*OOM, error) {
	counter, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("watch for out of memory: %w", err)
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		_ = counter.Close()
		return nil, fmt.Errorf("make inotify: %w", err)
	}
	o := &OOM{events: os.NewFile(uintptr(fd), "inotify"), counter: counter}
	if _, err := unix.InotifyAddWatch(fd, file, unix.IN_MODIFY); err != nil {
		o.Close()
		return nil, fmt.Errorf("watch %s: %w", file, err)
	}
	return o, nil
}

// Next waits until something may have happened. It returns an error once the
// watch is closed.
func (o *OOM) Next() error {
	var buf [4096]byte // room for many inotify events; an eventfd fills 8 bytes
	_, err := o.events.Read(buf[:])
	return err
}

// Kills is how many processes of the group the kernel has killed so far.
func (o *OOM) Kills() (uint64, error) {
	var buf [4096]byte
	n, err := o.counter.ReadAt(buf[:], 0)
	if n == 0 && err != nil {
		return 0, fmt.Errorf("read out of memory counter: %w", err)
	}
	var kills uint64
	pairs(buf[:n], func(key []byte, v uint64) {
		if bytes.Equal(key, []byte("oom_kill")) {
			kills = v
		}
	})
	return kills, nil
}

// Close ends the watch and wakes up Next.
func (o *OOM) Close() {
	_ = o.events.Close()
	_ = o.counter.Close()
}
