package lab

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// Busybox writes an OCI layout into dir that holds the image "busybox": Debian's
// static busybox with a hard link for each applet.
func Busybox(dir string) error {
	bin, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	program, err := os.ReadFile(bin)
	if err != nil {
		return err
	}
	list, err := exec.Command(bin, "--list").Output()
	if err != nil {
		return err
	}
	root := func(tw *tar.Writer) (err error) {
		put := func(h tar.Header, data string) {
			if err == nil {
				h.Size = int64(len(data))
				err = tw.WriteHeader(&h)
			}
			if err == nil {
				_, err = tw.Write([]byte(data))
			}
		}
		for _, d := range []string{"bin", "dev", "etc", "proc", "root", "sys", "usr", "usr/bin", "var"} {
			put(tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: 0o755}, "")
		}
		put(tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}, "")
		put(tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, string(program))
		for _, a := range strings.Fields(string(list)) {
			if a != "busybox" {
				put(tar.Header{Typeflag: tar.TypeLink, Name: "bin/" + a, Linkname: "bin/busybox", Mode: 0o755}, "")
			}
		}
		put(tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644}, "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")
		put(tar.Header{Typeflag: tar.TypeReg, Name: "etc/group", Mode: 0o644}, "root:x:0:\nnobody:x:65534:\n")
		return err
	}
	if err := WriteLayout(dir, "busybox", shell, root); err != nil {
		return err
	}
	layers := []Layer{root}
	for n := range 4 {
		layers = append(layers, func(tw *tar.Writer) error { return bulk(tw, n) })
	}
	return WriteLayout(filepath.Join(dir, "layered"), "layered", shell, layers...)
}

// shell is what the images run.
var shell = []string{"/bin/sh"}

// Layer writes the entries of one layer.
type Layer func(*tar.Writer) error

// Files of each of the layers that make the image "layered" take its time: it is
// busybox with four more of them, in the layout below "layered".
const (
	bulkFiles = 300
	bulkSize  = 8 << 10 // bytes of each
)

// bulk makes a layer of files that do not compress.
func bulk(tw *tar.Writer, n int) error {
	rnd := rand.NewChaCha8([32]byte{byte(n)})
	data := make([]byte, bulkSize)
	for f := range bulkFiles {
		_, _ = rnd.Read(data) // never fails
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("bulk/%d/%d", n, f), Mode: 0o644, Size: bulkSize}); err != nil {
			return err
		}
		if _, err := tw.Write(data); err != nil {
			return err
		}
	}
	return nil
}

type object = map[string]any

// WriteLayout writes an image of gzip layers that runs a command, as an OCI layout,
// by which skopeo knows it as oci:DIR:NAME.
func WriteLayout(dir, name string, command []string, layers ...Layer) error {
	blobs := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return err
	}
	add := func(mediaType string, v any) (object, error) {
		data, err := json.Marshal(v)
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(data)
		hexSum := hex.EncodeToString(sum[:])
		return object{"mediaType": mediaType, "digest": "sha256:" + hexSum, "size": len(data)}, os.WriteFile(filepath.Join(blobs, hexSum), data, 0o644)
	}
	var diffs []string
	var descs []object
	for _, layer := range layers {
		desc, diff, err := writeLayer(blobs, layer)
		if err != nil {
			return fmt.Errorf("layer of %s: %w", name, err)
		}
		diffs, descs = append(diffs, diff), append(descs, desc)
	}
	c, err := add("application/vnd.oci.image.config.v1+json", object{
		"architecture": runtime.GOARCH, "os": "linux", "created": "1970-01-01T00:00:00Z",
		"config": object{"Env": []string{"PATH=/bin:/usr/bin"}, "Cmd": command},
		"rootfs": object{"type": "layers", "diff_ids": diffs},
	})
	if err != nil {
		return err
	}
	const manifest = "application/vnd.oci.image.manifest.v1+json"
	m, err := add(manifest, object{"schemaVersion": 2, "mediaType": manifest, "config": c, "layers": descs})
	if err != nil {
		return err
	}
	m["annotations"] = object{"org.opencontainers.image.ref.name": name}
	index, err := json.Marshal(object{"schemaVersion": 2, "manifests": []object{m}})
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644),
		os.WriteFile(filepath.Join(dir, "index.json"), index, 0o644))
}

// writeLayer writes one blob, named by its digest, and returns its descriptor and
// the digest of what is in it.
func writeLayer(blobs string, layer Layer) (desc object, diff string, err error) {
	f, err := os.CreateTemp(blobs, "layer-")
	if err != nil {
		return nil, "", err
	}
	defer f.Close()
	packed, plain := sha256.New(), sha256.New()
	zw := gzip.NewWriter(io.MultiWriter(f, packed))
	tw := tar.NewWriter(io.MultiWriter(zw, plain))
	for _, step := range []func() error{func() error { return layer(tw) }, tw.Close, zw.Close} {
		if err := step(); err != nil {
			return nil, "", err
		}
	}
	size, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return nil, "", err
	}
	sum := hex.EncodeToString(packed.Sum(nil))
	desc = object{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": "sha256:" + sum, "size": size}
	return desc, "sha256:" + hex.EncodeToString(plain.Sum(nil)), os.Rename(f.Name(), filepath.Join(blobs, sum))
}
