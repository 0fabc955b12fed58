package stdio

import (
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestOutputIsThereForALateReader: all that is written before the reader comes, or
// just as it does, is read; one that never comes is not waited for.
func TestOutputIsThereForALateReader(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 1)
	go func() {
		time.Sleep(100 * time.Millisecond)
		f, err := os.Open(path)
		if err != nil {
			got <- err.Error()
			return
		}
		time.Sleep(50 * time.Millisecond)
		data, err := io.ReadAll(f)
		if err != nil {
			got <- err.Error()
			return
		}
		_ = f.Close()
		got <- string(data)
	}()
	p, err := parsePlace(path)
	if err != nil {
		t.Fatal(err)
	}
	w, err := p.openOutput(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteString("all of it"); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if s := <-got; s != "all of it" {
		t.Errorf("the reader got %q", s)
	}

	alone := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(alone, 0o600); err != nil {
		t.Fatal(err)
	}
	p.path = alone
	begin := time.Now()
	w, err = p.openOutput(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took < readerLimit || took > 2*readerLimit {
		t.Errorf("waited %s for nobody, want %s", took, readerLimit)
	}
	if _, err := w.WriteString("for nobody"); err != nil {
		t.Error(err)
	}
	_ = w.Close()
}
