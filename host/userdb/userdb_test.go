package userdb

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
)

const (
	passwdText = "root:x:0:0:root:/root:/bin/sh\n# a comment\n\nbroken:line\nwww:x:33:34:www:/var/www:/bin/false\n1000:x:0:0:a trap:/:/bin/sh\n" +
		"alice:x:1000:1000::/home/alice:\r\nbig:x:4294967295:0::/:\nhuge:x:99999999999:0::/:\nneg:x:-1:0::/:\nlast:x:7:8"
	groupText = "root:x:0:\nwww:x:34:\nstaff:x:50:alice, www\nadm:x:4:alice,alice\nalice:x:1000:\n7:x:0:trap\nbig:x:4294967295:alice\nlong:x:60000:bob,alice"
)

func rootfs(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for n, text := range files {
		p := filepath.Join(dir, n)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestLookup(t *testing.T) {
	dir := rootfs(t, map[string]string{"etc/passwd": passwdText, "etc/group": groupText})
	for _, c := range []struct {
		ask      Ask
		uid, gid uint32
		groups   []uint32
		kind     error
	}{
		{Ask{}, 0, 0, []uint32{0}, nil},
		{Ask{User: "alice"}, 1000, 1000, []uint32{1000, 50, 4, 60000}, nil},
		{Ask{User: "alice", Strict: true, Groups: []uint32{9, 1000, 9}}, 1000, 1000, []uint32{1000, 9}, nil},
		{Ask{User: "alice", Groups: []uint32{9, 50}}, 1000, 1000, []uint32{1000, 50, 4, 60000, 9}, nil},
		{Ask{User: "1000"}, 1000, 1000, []uint32{1000, 50, 4, 60000}, nil}, // not the user called 1000, who is root
		{Ask{User: "33", Group: "staff"}, 33, 50, []uint32{50}, nil},
		{Ask{User: "www", Group: "7"}, 33, 7, []uint32{7, 50}, nil}, // not the group called 7
		{Ask{User: "4711"}, 4711, 0, []uint32{0}, nil},
		{Ask{User: "4711", Group: "4712", Groups: []uint32{1}}, 4711, 4712, []uint32{4712, 1}, nil},
		{Ask{User: "last"}, 7, 8, []uint32{8}, nil},
		{Ask{User: "2147483647"}, MaxID, 0, []uint32{0}, nil},
		{Ask{User: "nobody"}, 0, 0, nil, errs.NotFound},
		{Ask{User: "alice", Group: "none"}, 0, 0, nil, errs.NotFound},
		{Ask{User: "broken"}, 0, 0, nil, errs.NotFound},
		{Ask{User: "big"}, 0, 0, nil, errs.NotFound},
		{Ask{User: "huge"}, 0, 0, nil, errs.NotFound},
		{Ask{User: "2147483648"}, 0, 0, nil, errs.InvalidArgument},
		{Ask{User: "4294967296"}, 0, 0, nil, errs.InvalidArgument}, // 0 in 32 bits
		{Ask{User: "99999999999999999999"}, 0, 0, nil, errs.InvalidArgument},
		{Ask{User: "-1"}, 0, 0, nil, errs.InvalidArgument},
		{Ask{User: "1", Group: "4294967296"}, 0, 0, nil, errs.InvalidArgument},
	} {
		u, err := Lookup(dir, c.ask)
		if c.kind != nil {
			if !errs.Is(err, c.kind) {
				t.Errorf("%+v: %+v, %v; want %v", c.ask, u, err, c.kind)
			}
			continue
		}
		if err != nil || u.UID != c.uid || u.GID != c.gid || !slices.Equal(u.Groups, c.groups) {
			t.Errorf("%+v: %+v, %v", c.ask, u, err)
		}
	}
	if u, err := Lookup(dir, Ask{User: "33"}); err != nil || u.Name != "www" || u.Home != "/var/www" {
		t.Errorf("name and home: %+v, %v", u, err)
	}
}

func TestNoFiles(t *testing.T) {
	for _, files := range []map[string]string{{}, {"etc": "a file"}} {
		dir := rootfs(t, files)
		if u, err := Lookup(dir, Ask{User: "5", Group: "6"}); err != nil || u.UID != 5 || u.GID != 6 {
			t.Errorf("%v: %+v, %v", files, u, err)
		}
		if _, err := Lookup(dir, Ask{User: "www"}); !errs.Is(err, errs.NotFound) {
			t.Errorf("%v: %v", files, err)
		}
	}
}

// TestHostile has an /etc/passwd that is everything but a file of the image: what is
// outside is never read, and nothing hangs.
func TestHostile(t *testing.T) {
	outside := t.TempDir()
	secret := filepath.Join(outside, "passwd")
	if err := os.WriteFile(secret, []byte("canary:x:666:666::/:\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		make func(dir string) error
		kind error
	}{
		{"absolute link", func(dir string) error { return os.Symlink(secret, dir+"/etc/passwd") }, errs.NotFound},
		{"relative link", func(dir string) error {
			return os.Symlink("../../../../../../../.."+secret, dir+"/etc/passwd")
		}, errs.NotFound},
		{"etc is a link", func(dir string) error {
			return errors.Join(os.Remove(dir+"/etc"), os.Symlink(outside, dir+"/etc"))
		}, errs.NotFound},
		{"magic link", func(dir string) error { return os.Symlink("/proc/self/root"+secret, dir+"/etc/passwd") }, errs.NotFound},
		{"loop", func(dir string) error { return os.Symlink("passwd", dir+"/etc/passwd") }, errs.InvalidArgument},
		{"directory", func(dir string) error { return os.Mkdir(dir+"/etc/passwd", 0o755) }, errs.InvalidArgument},
		{"fifo", func(dir string) error { return unix.Mkfifo(dir+"/etc/passwd", 0o644) }, errs.InvalidArgument},
		{"device", func(dir string) error {
			return unix.Mknod(dir+"/etc/passwd", unix.S_IFCHR|0o644, int(unix.Mkdev(1, 5)))
		}, errs.InvalidArgument},
		{"huge", func(dir string) error {
			return errors.Join(os.WriteFile(dir+"/etc/passwd", nil, 0o644), os.Truncate(dir+"/etc/passwd", maxFile+1))
		}, errs.InvalidArgument},
		{"one endless line", func(dir string) error {
			return os.WriteFile(dir+"/etc/passwd", []byte("canary:x:1:1:"+strings.Repeat("x", maxLine)+"\n"), 0o644)
		}, errs.NotFound},
		{"device node of group", func(dir string) error { return unix.Mkfifo(dir+"/etc/group", 0o644) }, errs.NotFound},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := rootfs(t, map[string]string{"etc/x": ""})
			if err := os.Remove(dir + "/etc/x"); err != nil {
				t.Fatal(err)
			}
			if err := c.make(dir); err != nil {
				t.Fatal(err)
			}
			if u, err := Lookup(dir, Ask{User: "canary"}); !errs.Is(err, c.kind) {
				t.Errorf("%+v, %v; want %v", u, err, c.kind)
			}
		})
	}
}

// TestLinkInside follows links as the container would.
func TestLinkInside(t *testing.T) {
	dir := rootfs(t, map[string]string{"usr/share/passwd": passwdText, "etc/x": ""})
	if err := os.Symlink("/usr/share/passwd", dir+"/etc/passwd"); err != nil {
		t.Fatal(err)
	}
	if u, err := Lookup(dir, Ask{User: "www"}); err != nil || u.UID != 33 {
		t.Errorf("%+v, %v", u, err)
	}
}

func FuzzLookup(f *testing.F) {
	f.Add(passwdText, groupText, "alice", "staff")
	f.Add("a:b:c:d", ":::", "0", "4294967296")
	f.Fuzz(func(t *testing.T, passwd, group, user, gr string) {
		var u User
		if err := u.find(strings.NewReader(passwd), Ask{User: user}); err != nil {
			return
		}
		own, err := u.groups(strings.NewReader(group), Ask{User: user, Group: gr})
		if err != nil {
			return
		}
		for _, g := range append(own, u.UID, u.GID) {
			if g > MaxID {
				t.Errorf("id %d", g)
			}
		}
		if n, numeric, _ := number(user); numeric && n != u.UID {
			t.Errorf("user %s became %d", user, u.UID)
		}
	})
}
