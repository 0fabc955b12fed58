package blob

import (
	"crypto/rand"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/base/errs"
)

func TestIngestResumesAndSeals(t *testing.T) {
	d, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 20<<20)
	_, _ = rand.Read(data)
	want := digest.FromBytes(data)

	in, err := d.Ingest("a", digest.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write(data[:9<<20]); err != nil {
		t.Fatal(err)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	in, err = d.Ingest("a", digest.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if in.Offset() != 9<<20 {
		t.Fatalf("resumed at %d", in.Offset())
	}
	if _, err := in.Write(data[in.Offset():]); err != nil {
		t.Fatal(err)
	}
	got, err := in.Seal(true)
	if err != nil || got != want {
		t.Fatalf("sealed %s, want %s: %v", got, want, err)
	}
	f, err := d.Open(want)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	back, _ := io.ReadAll(f)
	if digest.FromBytes(back) != want || f.Size != int64(len(data)) {
		t.Fatal("blob differs")
	}
	if ids, _ := d.Ingests(); len(ids) != 0 {
		t.Fatalf("ingests left: %v", ids)
	}
	if l, _ := d.List(); len(l) != 1 || l[0] != want {
		t.Fatalf("list %v", l)
	}
	if err := d.Remove(want); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Open(want); !errs.Is(err, errs.NotFound) {
		t.Fatalf("after remove: %v", err)
	}
}

func TestOtherAlgorithm(t *testing.T) {
	d, _ := Open(t.TempDir())
	in, err := d.Ingest("x", digest.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = in.Write([]byte("hello"))
	if err := in.Rehash(digest.SHA512); err != nil {
		t.Fatal(err)
	}
	if got, err := in.Seal(false); err != nil || got != digest.SHA512.FromString("hello") {
		t.Fatal(got, err)
	}
}

func TestHostileNames(t *testing.T) {
	root := t.TempDir()
	d, _ := Open(filepath.Join(root, "c"))
	for _, s := range []string{"", "sha256:", "sha256:/", "sha256:../../x", "sha256:" + "a", "x:abc", "sha256:ABCDEF", "../x"} {
		if _, err := d.Path(digest.Digest(s)); !errs.Is(err, errs.InvalidArgument) {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, s := range []string{"", "../x", "a/b", ".", ".."} {
		if _, err := d.Ingest(s, digest.SHA256); !errs.Is(err, errs.InvalidArgument) {
			t.Errorf("ingest %q: %v", s, err)
		}
	}
	if l, _ := os.ReadDir(root); len(l) != 1 {
		t.Fatalf("something was made outside: %v", l)
	}
}
