package rootfs

import (
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/containerd/containerd/api/types"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
)

func TestUser(t *testing.T) {
	files := map[string]string{
		"/etc/passwd": "root:x:0:0:root:/root:/bin/sh\n# comment\nweb:x:33:34:web:/srv:/bin/false\n1000:x:5:5:odd:/odd:/bin/sh\n",
		"/etc/group":  "root:x:0:root\nwww:x:34:\nextra:x:50:web,other\ndisk:x:6:root\n",
	}
	read := func(name string) ([]byte, error) {
		if s, ok := files[name]; ok {
			return []byte(s), nil
		}
		return nil, fs.ErrNotExist
	}
	for _, c := range []struct {
		text string
		more []string
		want rspec.User
		home string
	}{
		{"", nil, rspec.User{AdditionalGids: []uint32{6}}, "/root"},
		{"web", nil, rspec.User{UID: 33, GID: 34, AdditionalGids: []uint32{50}}, "/srv"},
		{"33", nil, rspec.User{UID: 33, GID: 34, AdditionalGids: []uint32{50}}, "/srv"},
		{"web:extra", nil, rspec.User{UID: 33, GID: 50}, "/srv"},
		{"1234", []string{"www", "77"}, rspec.User{UID: 1234, AdditionalGids: []uint32{34, 77}}, "/"},
		{"1000", nil, rspec.User{UID: 5, GID: 5}, "/odd"}, // a name that looks like a number is a name
		{"1:2", nil, rspec.User{UID: 1, GID: 2}, "/"},
	} {
		got, home, err := User(c.text, c.more, read)
		if err != nil || !reflect.DeepEqual(got, c.want) || home != c.home {
			t.Errorf("User(%q) = %+v, %q, %v; want %+v, %q", c.text, got, home, err, c.want, c.home)
		}
	}
	for _, bad := range []string{"nobody", "web:nogroup", "99999999999"} {
		if _, _, err := User(bad, nil, read); !errs.Is(err, errs.NotFound) {
			t.Errorf("User(%q): %v, want not found", bad, err)
		}
	}
}

func TestReadFileInLayers(t *testing.T) {
	dir := t.TempDir()
	put := func(layer, name, text string) {
		p := filepath.Join(dir, layer, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("low", "etc/passwd", "low")
	put("low", "etc/group", "low group")
	put("low", "etc/gone", "was")
	put("up", "etc/passwd", "up")
	if err := os.Symlink("/../../../../../../etc/hostname", filepath.Join(dir, "up/etc/escape")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(filepath.Join(dir, "up/etc/gone"), unix.S_IFCHR, 0); err != nil {
		t.Fatal(err)
	}
	m := []*types.Mount{{Type: "overlay", Options: []string{"lowerdir=" + dir + "/low", "upperdir=" + dir + "/up", "workdir=/w"}}}
	for name, want := range map[string]string{"/etc/passwd": "up", "/etc/group": "low group", "/etc/gone": "", "/etc/escape": "", "/etc/none": ""} {
		got, err := ReadFile(m, name)
		if string(got) != want || (want == "") != (err != nil) {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
	}
}
