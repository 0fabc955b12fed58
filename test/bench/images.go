package main

import (
	"archive/tar"
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berthd/berth/test/lab"
)

// The images that are pulled, all made of this machine's own files, which are
// Debian's.
var pullImages = []struct{ name, what string }{
	{"one", "one layer of 300 MB"},
	{"twelve", "twelve layers of 30 MB"},
	{"small", "one layer of 60,000 small files"},
}

// images makes what the registry does not have yet, and pushes it.
func (b *bench) images(ctx context.Context) error {
	cache, err := cacheDir()
	if err != nil {
		return err
	}
	for _, name := range []string{"busybox", "pause", "one", "twelve", "small"} {
		done := filepath.Join(cache, "pushed-"+name)
		if _, err := os.Stat(done); err == nil {
			continue
		}
		progress("making image %s", name)
		layout := filepath.Join(b.dir, "oci-"+name)
		if name == "busybox" {
			err = lab.Busybox(layout)
		} else {
			err = makeImage(layout, name)
		}
		if err != nil {
			return err
		}
		out, err := exec.CommandContext(ctx, "skopeo", "copy", "-q", "--dest-tls-verify=false", "oci:"+layout+":"+name, "docker://"+b.image(name)).CombinedOutput()
		if err != nil {
			return fmt.Errorf("push %s: %w: %s", name, err, out)
		}
		if err := os.RemoveAll(layout); err != nil {
			return err
		}
		if err := os.WriteFile(done, nil, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) image(name string) string { return b.host + "/bench/" + name + ":latest" }

type file struct {
	path string
	size int64
	rank string
}

const (
	mb         = 1 << 20
	smallFiles = 60_000
	smallSize  = 32 << 10
)

func makeImage(layout, name string) error {
	all, err := files("/usr")
	if err != nil {
		return err
	}
	var layers []lab.Layer
	switch name {
	case "one":
		part, _ := take(all, 300*mb)
		layers = append(layers, pack("", part))
	case "twelve":
		for range 12 {
			var part []file
			part, all = take(all, 30*mb)
			layers = append(layers, pack("", part))
		}
	case "pause": // what containerd needs beside each pod
		path, err := exec.LookPath("busybox")
		if err != nil {
			return err
		}
		layers = append(layers, func(tw *tar.Writer) error { return pour(tw, path, "busybox", 0o755) })
	case "small":
		all = slices.DeleteFunc(all, func(f file) bool { return f.size > smallSize })
		if len(all) == 0 {
			return fmt.Errorf("there are no small files below /usr")
		}
		layers = append(layers, func(tw *tar.Writer) error {
			for n := 0; n < smallFiles; n += len(all) { // a machine with few files gets them more than once
				part := all[:min(len(all), smallFiles-n)]
				if err := pack(fmt.Sprintf("copy%d/", n/len(all)), part)(tw); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return lab.WriteLayout(layout, name, []string{"/busybox", "sleep", "2000000000"}, layers...)
}

// files lists the regular files below a directory, in an order that has nothing to
// do with what they are.
func files(root string) ([]file, error) {
	var out []file
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !d.Type().IsRegular() {
			return nil
		}
		st, err := d.Info()
		if err != nil || st.Size() == 0 || st.Size() > 16*mb {
			return err
		}
		out = append(out, file{p, st.Size(), fmt.Sprintf("%x", sha256.Sum256([]byte(p)))})
		return nil
	})
	slices.SortFunc(out, func(a, b file) int { return cmp.Compare(a.rank, b.rank) })
	return out, err
}

// take gives files of so many bytes, and the rest.
func take(all []file, bytes int64) (part, rest []file) {
	for n, f := range all {
		if bytes -= f.size; bytes < 0 {
			return all[:n], all[n:]
		}
	}
	return all, nil
}

// pack writes files in the order of their paths, with their directories.
func pack(prefix string, part []file) lab.Layer {
	part = slices.Clone(part)
	slices.SortFunc(part, func(a, b file) int { return cmp.Compare(a.path, b.path) })
	return func(tw *tar.Writer) error {
		made := map[string]bool{}
		for _, f := range part {
			name := prefix + strings.TrimPrefix(f.path, "/")
			if err := directories(tw, made, filepath.Dir(name)); err != nil {
				return err
			}
			if err := pour(tw, f.path, name, 0o644); err != nil {
				return err
			}
		}
		return nil
	}
}

func directories(tw *tar.Writer, made map[string]bool, dir string) error {
	if dir == "." || made[dir] {
		return nil
	}
	if err := directories(tw, made, filepath.Dir(dir)); err != nil {
		return err
	}
	made[dir] = true
	return tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755})
}

func pour(tw *tar.Writer, path, name string, mode int64) error {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: st.Size()}); err != nil {
		return err
	}
	_, err = io.CopyN(tw, in, st.Size())
	return err
}
