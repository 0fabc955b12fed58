package lab

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// Debian writes the image "debian" as an OCI layout below dir: the root file system
// that `make tools` has made with mmdebstrap, a layer with everything that a tar can
// say of a file and Debian does not, and two that take away and replace. The layers
// are gzip, zstd and plain. The image "odd" is the same without Debian.
func Debian(t testing.TB, dir string) {
	t.Helper()
	base, err := os.ReadFile(filepath.Join(filepath.Dir(Tool(t, "ctr")), "debian.tar"))
	if err != nil {
		t.Fatalf("%v: run `make tools`", err)
	}
	odd, err := tarOf(oddFiles())
	if err != nil {
		t.Fatal(err)
	}
	less, err := tarOf(removals())
	if err != nil {
		t.Fatal(err)
	}
	again, err := tarOf(replacements())
	if err != nil {
		t.Fatal(err)
	}
	layers := []packed{{tar: base, how: "gzip", fast: true}, {tar: odd, how: "zstd"}, {tar: less}, {tar: again, how: "gzip"}}
	if err := errors.Join(writeImage(dir, "debian", layers), writeImage(dir, "odd", layers[1:])); err != nil {
		t.Fatal(err)
	}
}

// entry is one file of a layer; its content is data.
type entry struct {
	tar.Header
	data string
}

func tarOf(all []entry) ([]byte, error) {
	var out bytes.Buffer
	tw := tar.NewWriter(&out)
	for _, e := range all {
		e.Size = int64(len(e.data))
		e.Format = tar.FormatPAX
		if e.ModTime.IsZero() {
			e.ModTime = time.Unix(1700000000, 123456789)
		}
		if err := tw.WriteHeader(&e.Header); err != nil {
			return nil, fmt.Errorf("%s: %w", e.Name, err)
		}
		if _, err := tw.Write([]byte(e.data)); err != nil {
			return nil, fmt.Errorf("%s: %w", e.Name, err)
		}
	}
	return out.Bytes(), tw.Close()
}

func dir(name string, mode int64) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode}}
}

func file(name, data string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, data: data}
}

func gone(name string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}}
}

// netBind is CAP_NET_BIND_SERVICE, permitted and effective, as the kernel keeps it
// (vfs_cap_data of capability.h, revision 2).
const netBind = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// oddFiles is a layer with each kind of file and attribute.
func oddFiles() []entry {
	h := func(typ byte, name string, change func(*tar.Header)) entry {
		e := entry{Header: tar.Header{Typeflag: typ, Name: name, Mode: 0o644}}
		change(&e.Header)
		return e
	}
	xattr := func(e entry, name, value string) entry {
		if e.PAXRecords == nil {
			e.PAXRecords = map[string]string{}
		}
		e.PAXRecords["SCHILY.xattr."+name] = value
		return e
	}
	owned := func(e entry, uid, gid int, mode int64) entry {
		e.Uid, e.Gid, e.Mode = uid, gid, mode
		return e
	}
	long := strings.Repeat("a-long-name-", 20)
	all := []entry{
		dir("odd", 0o755),
		file("odd/plain", "plain\n"),
		owned(file("odd/setuid", "#!/bin/sh\n"), 0, 0, 0o4755),
		owned(file("odd/setgid", "#!/bin/sh\n"), 1000, 1001, 0o2711),
		owned(file("odd/sticky", "x"), 12, 34, 0o1600),
		owned(file("odd/big-owner", "x"), 3000000, 4000000, 0o600),
		owned(dir("odd/sticky-dir", 0), 1, 2, 0o1777),
		owned(dir("odd/setgid-dir", 0), 5, 6, 0o2775),
		owned(dir("odd/closed-dir", 0), 7, 8, 0),
		file("odd/closed-dir/inside", "seen by root\n"),
		xattr(owned(file("odd/capable", "#!/bin/sh\n"), 0, 0, 0o755), "security.capability", netBind),
		xattr(xattr(owned(file("odd/capable-owned", "x"), 1000, 1000, 0o755), "security.capability", netBind), "user.note", "with\x00zero"),
		xattr(file("odd/noted", "x"), "user.comment", strings.Repeat("v", 2000)),
		xattr(dir("odd/noted-dir", 0o755), "user.dir", "yes"),
		h(tar.TypeFifo, "odd/fifo", func(h *tar.Header) { h.Mode, h.Uid = 0o640, 9 }),
		h(tar.TypeChar, "odd/null", func(h *tar.Header) { h.Devmajor, h.Devminor, h.Mode = 1, 3, 0o666 }),
		h(tar.TypeBlock, "odd/block", func(h *tar.Header) { h.Devmajor, h.Devminor, h.Mode = 7, 99, 0o660 }),
		h(tar.TypeChar, "odd/big-device", func(h *tar.Header) { h.Devmajor, h.Devminor = 300, 70000 }),
		h(tar.TypeSymlink, "odd/link", func(h *tar.Header) { h.Linkname, h.Uid = "plain", 77 }),
		h(tar.TypeSymlink, "odd/absolute", func(h *tar.Header) { h.Linkname = "/etc/passwd" }),
		h(tar.TypeSymlink, "odd/outside", func(h *tar.Header) { h.Linkname = "../../../../etc/shadow" }),
		h(tar.TypeSymlink, "odd/dangling", func(h *tar.Header) { h.Linkname = "nowhere/at all" }),
		h(tar.TypeLink, "odd/hard", func(h *tar.Header) { h.Linkname = "odd/plain" }),
		h(tar.TypeLink, "odd/hard2", func(h *tar.Header) { h.Linkname = "odd/hard" }),
		// A link to a file of the layer below is not among them: stock containerd
		// refuses it. host/archive has tests of it.
		file("odd/"+long, "long\n"),
		file("odd/"+strings.Repeat("deep/", 60)+"leaf", "deep\n"),
		file("odd/spaces and \ttabs\nand lines", "x"),
		file("odd/\xff\xfe-not-utf8", "x"),
		file("odd/ünïcödé", "x"),
		file("odd/zeros", strings.Repeat("\x00", 3<<20)+"end"),
		file("odd/empty", ""),
		file("./odd/../odd/dots", "x"),
		file("/odd/rooted", "x"),
		file("odd/no-parents/of/mine/file", "x"),
		file("odd/twice", "first"),
		owned(file("odd/twice", "second"), 3, 3, 0o600),
		file("odd/was-file", "x"),
		dir("odd/was-file", 0o700),
	}
	old := file("odd/old", "x")
	old.ModTime = time.Unix(1, 1)
	future := file("odd/future", "x")
	future.ModTime = time.Unix(4102444800, 999999999)
	all = append(all, old, future)
	for i := range 500 {
		all = append(all, file(fmt.Sprintf("odd/many/%d/%d", i%7, i), fmt.Sprint(i)))
	}
	return all
}

// removals takes files, directories and one of two links away.
func removals() []entry {
	return []entry{
		gone("usr/share/.wh.doc"),
		gone("etc/.wh.hostname"),
		gone("odd/.wh.hard"),
		gone("odd/.wh.never-there"),
		gone("odd/many/.wh.3"),
		dir("odd/many/4", 0o755),
		gone("odd/many/4/.wh..wh..opq"),
		file("odd/many/4/new", "after opaque\n"),
		gone("odd/.wh.link"),
		gone("odd/.wh.setgid-dir"),
	}
}

// replacements puts other things where there were, or had been, some.
func replacements() []entry {
	e := dir("odd/sticky-dir", 0o700) // new attributes only
	e.Uid = 4242
	link := entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: "odd/many/5", Linkname: "6", Mode: 0o777}}
	return []entry{
		e,
		dir("usr/share/doc", 0o755),
		file("usr/share/doc/only", "one\n"),
		gone("odd/many/.wh.5"),
		link, // a directory became a link
		dir("odd/plain", 0o755),
		file("odd/plain/in", "a file became a directory\n"),
		file("odd/was-file", "a directory became a file\n"),
		file("odd/hard", "a removed link is a file of its own\n"),
		file("odd/many/3", "a removed directory is a file now\n"),
		dir("odd/many/6", 0o711),
		gone("odd/many/6/.wh..wh..opq"),
	}
}

// packed is a layer's tar, and how it is compressed in the image: "gzip", "zstd" or "".
type packed struct {
	tar  []byte
	how  string
	fast bool // little work for the compressor
}

// compress returns the layer as it is in the image, and its media type.
func (l packed) compress() (data []byte, mediaType string, err error) {
	const tarType = "application/vnd.oci.image.layer.v1.tar"
	var out bytes.Buffer
	switch l.how {
	case "gzip":
		level := gzip.DefaultCompression
		if l.fast {
			level = gzip.BestSpeed
		}
		zw, err := gzip.NewWriterLevel(&out, level)
		if err != nil {
			return nil, "", err
		}
		_, err = zw.Write(l.tar)
		err = errors.Join(err, zw.Close())
		return out.Bytes(), tarType + "+gzip", err
	case "zstd":
		cmd := exec.Command("zstd", "-q", "-c")
		cmd.Stdin, cmd.Stdout = bytes.NewReader(l.tar), &out
		if err := cmd.Run(); err != nil {
			return nil, "", fmt.Errorf("zstd: %w", err)
		}
		return out.Bytes(), tarType + "+zstd", nil
	}
	return l.tar, tarType, nil
}

// writeImage writes an image as an OCI layout.
func writeImage(dir, name string, layers []packed) error {
	blobs := map[string][]byte{}
	add := func(mediaType string, data []byte) object {
		sum := sha256.Sum256(data)
		hexSum := hex.EncodeToString(sum[:])
		blobs[hexSum] = data
		return object{"mediaType": mediaType, "digest": "sha256:" + hexSum, "size": len(data)}
	}
	var diffs []string
	var descs []object
	for _, l := range layers {
		data, mediaType, err := l.compress()
		if err != nil {
			return err
		}
		diff := sha256.Sum256(l.tar)
		diffs = append(diffs, "sha256:"+hex.EncodeToString(diff[:]))
		descs = append(descs, add(mediaType, data))
	}
	config, err := json.Marshal(object{
		"architecture": runtime.GOARCH, "os": "linux", "created": "1970-01-01T00:00:00Z",
		"config": object{"Env": []string{"PATH=/bin:/usr/bin"}, "Cmd": []string{"/bin/sh"}},
		"rootfs": object{"type": "layers", "diff_ids": diffs},
	})
	if err != nil {
		return err
	}
	c := add("application/vnd.oci.image.config.v1+json", config)
	manifest, err := json.Marshal(object{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": c, "layers": descs})
	if err != nil {
		return err
	}
	m := add("application/vnd.oci.image.manifest.v1+json", manifest)
	m["annotations"] = object{"org.opencontainers.image.ref.name": name}
	index, err := addTo(filepath.Join(dir, "index.json"), m)
	if err != nil {
		return err
	}
	files := map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`), "index.json": index}
	for sum, data := range blobs {
		files[path.Join("blobs/sha256", sum)] = data
	}
	for f, data := range files {
		p := filepath.Join(dir, f)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(p, data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// addTo returns the index that is in a file, if it is there, with one manifest more.
func addTo(path string, manifest object) ([]byte, error) {
	var index struct {
		Version   int      `json:"schemaVersion"`
		Manifests []object `json:"manifests"`
	}
	old, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(old, &index)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	index.Version, index.Manifests = 2, append(index.Manifests, manifest)
	return json.Marshal(index)
}
