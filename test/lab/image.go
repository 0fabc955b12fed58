package lab

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
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
	var layer bytes.Buffer
	tw := tar.NewWriter(&layer)
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
	if err == nil {
		err = tw.Close()
	}
	if err != nil {
		return fmt.Errorf("busybox layer: %w", err)
	}
	if err := writeLayout(dir, "busybox", layer.Bytes()); err != nil {
		return err
	}
	var layers [][]byte
	for n := range 4 {
		l, err := bulk(n)
		if err != nil {
			return err
		}
		layers = append(layers, l)
	}
	return writeLayout(filepath.Join(dir, "layered"), "layered", append([][]byte{layer.Bytes()}, layers...)...)
}

// Files of each of the layers that make the image "layered" take its time: it is
// busybox with four more of them, in the layout below "layered".
const (
	bulkFiles = 300
	bulkSize  = 8 << 10 // bytes of each
)

// bulk makes a layer of files that do not compress.
func bulk(n int) ([]byte, error) {
	var out bytes.Buffer
	tw := tar.NewWriter(&out)
	rnd := rand.NewChaCha8([32]byte{byte(n)})
	data := make([]byte, bulkSize)
	for f := range bulkFiles {
		_, _ = rnd.Read(data) // never fails
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("bulk/%d/%d", n, f), Mode: 0o644, Size: bulkSize}); err != nil {
			return nil, err
		}
		if _, err := tw.Write(data); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), tw.Close()
}

type object = map[string]any

// writeLayout writes an image of gzip layers as an OCI layout.
func writeLayout(dir, name string, layers ...[]byte) error {
	blobs := map[string][]byte{}
	add := func(mediaType string, data []byte) object {
		sum := sha256.Sum256(data)
		hexSum := hex.EncodeToString(sum[:])
		blobs[hexSum] = data
		return object{"mediaType": mediaType, "digest": "sha256:" + hexSum, "size": len(data)}
	}
	var diffs []string
	var descs []object
	for _, layer := range layers {
		var gz bytes.Buffer
		zw := gzip.NewWriter(&gz)
		if _, err := zw.Write(layer); err != nil {
			return err
		}
		if err := zw.Close(); err != nil {
			return err
		}
		diff := sha256.Sum256(layer)
		diffs = append(diffs, "sha256:"+hex.EncodeToString(diff[:]))
		descs = append(descs, add("application/vnd.oci.image.layer.v1.tar+gzip", gz.Bytes()))
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
	index, err := json.Marshal(object{"schemaVersion": 2, "manifests": []object{m}})
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
