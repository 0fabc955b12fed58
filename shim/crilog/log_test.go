package crilog

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// parse takes an entry apart.
func parse(line string) (stamp, stream, tag, content string, ok bool) {
	stamp, rest, ok1 := strings.Cut(line, " ")
	stream, rest, ok2 := strings.Cut(rest, " ")
	tag, content, ok3 := strings.Cut(rest, " ")
	return stamp, stream, tag, content, ok1 && ok2 && ok3 && (tag == "P" || tag == "F") && (stream == "stdout" || stream == "stderr")
}

// read checks a log's form and joins the contents of each stream, a P without and an F
// with its newline.
func read(t *testing.T, maxLine int, paths ...string) map[string]string {
	t.Helper()
	out := map[string]*strings.Builder{"stdout": {}, "stderr": {}}
	for _, p := range paths {
		data, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		if len(data) > 0 && data[len(data)-1] != '\n' {
			t.Errorf("%s ends within a line", p)
		}
		for line := range strings.Lines(string(data)) {
			stamp, stream, tag, content, ok := parse(strings.TrimSuffix(line, "\n"))
			if !ok {
				t.Fatalf("%s: no entry: %.200q", p, line)
			}
			if _, err := time.Parse(time.RFC3339Nano, stamp); err != nil {
				t.Error(err)
			}
			if len(content) > maxLine {
				t.Errorf("a content of %d bytes, at most %d are allowed", len(content), maxLine)
			}
			b := out[stream]
			b.WriteString(content)
			if tag == "F" {
				b.WriteByte('\n')
			}
		}
	}
	return map[string]string{"stdout": out["stdout"].String(), "stderr": out["stderr"].String()}
}

func open(t *testing.T, c Config) *Log {
	t.Helper()
	if c.Path == "" {
		c.Path = filepath.Join(t.TempDir(), "pod", "c.log")
	}
	l, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

// contents are the entries without their times.
func contents(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return regexp.MustCompile(`(?m)^\S+ `).ReplaceAllString(string(data), "")
}

func TestEntries(t *testing.T) {
	long := strings.Repeat("x", DefaultMaxLine)
	for _, tc := range []struct {
		name   string
		writes []string
		want   string
	}{
		{"a line", []string{"hello\n"}, "stdout F hello\n"},
		{"two in one piece", []string{"a\nb\n"}, "stdout F a\nstdout F b\n"},
		{"one in pieces", []string{"he", "", "l", "lo\nwor", "ld\n"}, "stdout F hello\nstdout F world\n"},
		{"no newline at the end", []string{"a\nend"}, "stdout F a\nstdout P end\n"},
		{"empty lines", []string{"\n\n"}, "stdout F \nstdout F \n"},
		{"as long as allowed", []string{long + "\n"}, "stdout F " + long + "\n"},
		{"longer", []string{long + "yz\n"}, "stdout P " + long + "\nstdout F yz\n"},
		{"longer, in pieces", []string{long[1:], "xy", "z\n"}, "stdout P " + long + "\nstdout F yz\n"},
		{"twice as long, without an end", []string{long + long + "q"}, "stdout P " + long + "\nstdout P " + long + "\nstdout P q\n"},
		{"carriage returns stay", []string{"a\r\n"}, "stdout F a\r\n"},
		{"nothing", nil, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := open(t, Config{})
			s := l.Stream("stdout")
			for _, w := range tc.writes {
				s.Write([]byte(w))
			}
			s.Close()
			if got := contents(t, l.config.Path); got != tc.want {
				t.Errorf("got %.100q, want %.100q", got, tc.want)
			}
		})
	}
}

func TestModeAndPlace(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	l := open(t, Config{})
	st, err := os.Stat(l.config.Path)
	if err != nil || st.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	dir := t.TempDir()
	victim := filepath.Join(dir, "victim")
	if err := os.WriteFile(victim, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"link", "fifo", "."} {
		if _, err := Open(Config{Path: filepath.Join(dir, name)}); err == nil {
			t.Errorf("%s was taken for a log", name)
		}
	}
}

// writeNumbers writes numbered lines of random lengths in random pieces until stop is
// closed, and returns how many.
func writeNumbers(s *Stream, seed uint64, stop <-chan struct{}) int {
	r := rand.New(rand.NewPCG(seed, 1))
	var buf []byte
	for n := 0; ; n++ {
		select {
		case <-stop:
			s.Write(buf)
			s.Close()
			return n
		default:
		}
		buf = strconv.AppendInt(buf, int64(n), 10)
		buf = append(buf, ' ')
		length := r.IntN(200)
		if r.IntN(100) == 0 {
			length = r.IntN(2 * DefaultMaxLine)
		}
		buf = append(buf, bytes.Repeat([]byte{'x'}, length)...)
		buf = append(buf, '\n')
		if cut := r.IntN(len(buf) + 1); r.IntN(8) == 0 {
			s.Write(buf[:cut])
			buf = append(buf[:0], buf[cut:]...)
		}
	}
}

// checkNumbers checks that no line is missing, torn or out of order.
func checkNumbers(t *testing.T, text string, want int) {
	t.Helper()
	n := 0
	for line := range strings.Lines(text) {
		number, rest, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if !ok || number != strconv.Itoa(n) || strings.Trim(rest, "x") != "" {
			t.Fatalf("line %d is %.100q", n, line)
		}
		n++
	}
	if n != want {
		t.Errorf("%d lines, want %d", n, want)
	}
}

// A kubelet renames and has the log opened again while the container writes as fast
// as it can.
func TestReopenUnderLoad(t *testing.T) {
	l := open(t, Config{})
	stop := make(chan struct{})
	counts := map[string]int{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i, name := range []string{"stdout", "stderr"} {
		wg.Add(1)
		go func() {
			defer wg.Done()
			n := writeNumbers(l.Stream(name), uint64(i), stop)
			mu.Lock()
			defer mu.Unlock()
			counts[name] = n
		}()
	}
	var files []string
	for i := range 100 {
		time.Sleep(time.Millisecond)
		old := fmt.Sprintf("%s.%03d", l.config.Path, i)
		if err := os.Rename(l.config.Path, old); err != nil {
			t.Fatal(err)
		}
		files = append(files, old)
		if err := l.Reopen(); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	wg.Wait()
	got := read(t, DefaultMaxLine, append(files, l.config.Path)...)
	for name, n := range counts {
		if n == 0 {
			t.Errorf("%s: nothing was written", name)
		}
		checkNumbers(t, got[name], n)
	}
	if l.Lost() != 0 {
		t.Errorf("%d lines are counted as lost", l.Lost())
	}
}

// Rotation of our own keeps every line but those of the files it drops.
func TestRotation(t *testing.T) {
	l := open(t, Config{MaxSize: 64 << 10, MaxFiles: 1000})
	s := l.Stream("stdout")
	for n := range 20_000 {
		s.Write(fmt.Appendf(nil, "%d %s\n", n, strings.Repeat("x", n%100)))
	}
	s.Close()
	files, err := filepath.Glob(l.config.Path + ".*")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	slices.SortFunc(files, func(a, b string) int { return number(b) - number(a) })
	files = append(files, l.config.Path)
	for _, f := range files {
		if st, err := os.Stat(f); err != nil || st.Size() > 64<<10 {
			t.Errorf("%s has %d bytes, %v", f, st.Size(), err)
		}
	}
	checkNumbers(t, read(t, DefaultMaxLine, files...)["stdout"], 20_000)
}

func number(path string) int {
	n, _ := strconv.Atoi(strings.TrimPrefix(filepath.Ext(path), "."))
	return n
}

// On a full disk whole lines are dropped and counted, and when there is room again
// writing goes on. The container waits at no time.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 128<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	l := open(t, Config{Path: filepath.Join(dir, "c.log")})
	var told []string
	l.Changed = func(err error, lines uint64) { told = append(told, fmt.Sprint(err != nil, lines)) }
	s := l.Stream("stdout")
	line := func(n int) []byte { return fmt.Appendf(nil, "%d %s\n", n, strings.Repeat("x", 900)) }
	const all = 400
	for n := range all {
		s.Write(line(n))
	}
	lost := l.Lost()
	if lost == 0 || lost >= all {
		t.Fatalf("%d of %d lines are lost", lost, all)
	}
	checkNumbers(t, read(t, DefaultMaxLine, l.config.Path)["stdout"], all-int(lost))
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	s.Write([]byte("back\n"))
	s.Close()
	if got := read(t, DefaultMaxLine, l.config.Path)["stdout"]; !strings.HasSuffix(got, "\nback\n") {
		t.Errorf("it ends with %q", got[max(0, len(got)-50):])
	}
	if want := []string{"true 0", fmt.Sprintf("false %d", lost)}; !slices.Equal(told, want) {
		t.Errorf("told %v, want %v", told, want)
	}
}

// A log whose directory was removed takes what comes, and is made again when it is
// opened again.
func TestDirectoryVanishes(t *testing.T) {
	l := open(t, Config{})
	s := l.Stream("stdout")
	s.Write([]byte("one\n"))
	dir := filepath.Dir(l.config.Path)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	s.Write([]byte("two\n"))
	if err := l.Reopen(); err != nil {
		t.Fatal(err)
	}
	s.Write([]byte("three\n"))
	if got := contents(t, l.config.Path); got != "stdout F three\n" {
		t.Errorf("got %q", got)
	}
	// Something that is no log in its place: the old file goes on.
	if err := errors.Join(os.Rename(l.config.Path, l.config.Path+".1"), os.Mkdir(l.config.Path, 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := l.Reopen(); err == nil {
		t.Error("a directory was taken for a log")
	}
	s.Write([]byte("four\n"))
	if got := contents(t, l.config.Path+".1"); got != "stdout F three\nstdout F four\n" {
		t.Errorf("got %q", got)
	}
}

// Whatever is written in whatever pieces: joined again it is the same.
func FuzzStream(f *testing.F) {
	f.Add([]byte("a\nb"), uint8(1))
	f.Add(bytes.Repeat([]byte("line\n"), 50), uint8(7))
	f.Add(bytes.Repeat([]byte{0xff, 0}, 100), uint8(3))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte, step uint8) {
		const maxLine = 16
		path := filepath.Join(dir, "c.log")
		_ = os.Remove(path)
		l := open(t, Config{Path: path, MaxLine: maxLine})
		s := l.Stream("stderr")
		for rest := data; len(rest) > 0; {
			n := min(len(rest), int(step)+1)
			s.Write(rest[:n])
			rest = rest[n:]
		}
		s.Close()
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var got []byte
		for len(raw) > 0 {
			line, rest, ok := bytes.Cut(raw, []byte("\n"))
			_, after, ok2 := bytes.Cut(line, []byte(" stderr "))
			if !ok || !ok2 || len(after) < 2 || len(after)-2 > maxLine {
				t.Fatalf("entry %q", line)
			}
			got = append(got, after[2:]...)
			if after[0] == 'F' {
				got = append(got, '\n')
			}
			raw = rest
		}
		if !bytes.Equal(got, data) {
			t.Errorf("%q became %q", data, got)
		}
	})
}
