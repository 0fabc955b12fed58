package archive

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// benchLayers are a layer of many small files and one of few large files, as text
// that compresses about as well as programs do.
func benchLayers(b *testing.B) map[string][]byte {
	r := rand.New(rand.NewPCG(1, 2))
	text := make([]byte, 1<<20)
	for i := range text {
		text[i] = byte(r.IntN(16)) * byte(r.IntN(3))
	}
	var small, large []ent
	for d := range 1000 {
		small = append(small, dir(fmt.Sprintf("d%d", d)))
		for f := range 10 {
			at, n := r.IntN(1<<19), r.IntN(12<<10)
			small = append(small, file(fmt.Sprintf("d%d/f%d", d, f), string(text[at:at+n])))
		}
	}
	for f := range 4 {
		large = append(large, file(fmt.Sprintf("f%d", f), string(bytes.Repeat(text, 16))))
	}
	return map[string][]byte{"small files": layer(b, small...), "large files": layer(b, large...)}
}

// BenchmarkApply unpacks into the file system of TMPDIR. On ext4 compare only runs
// with -benchtime=1x on a fresh one: inodes that were freed lately slow it down.
func BenchmarkApply(b *testing.B) {
	for name, data := range benchLayers(b) {
		for _, mediaType := range []string{ociTar, ociGzip, ociZstd} {
			in := compressed(b, mediaType, data)
			b.Run(name+mediaType[len(ociTar):], func(b *testing.B) {
				top := b.TempDir()
				b.SetBytes(int64(len(data)))
				for i := 0; b.Loop(); i++ {
					root := filepath.Join(top, fmt.Sprint(i))
					must(b, os.Mkdir(root, 0o755))
					r, err := Decompress(bytes.NewReader(in), mediaType)
					must(b, err)
					_, err = Apply(context.Background(), root, r, ApplyOptions{})
					must(b, err)
					must(b, r.Close())
				}
			})
		}
	}
}

func BenchmarkDiffUpper(b *testing.B) {
	for name, data := range benchLayers(b) {
		root := b.TempDir()
		_, err := Apply(context.Background(), root, bytes.NewReader(data), ApplyOptions{})
		must(b, err)
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				var out bytes.Buffer
				must(b, DiffUpper(context.Background(), &out, root, nil, DiffOptions{}))
			}
		})
	}
}
