package term

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestDetachable(t *testing.T) {
	keys, err := ParseKeys(DefaultKeys)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		in, want string
		err      error
	}{
		{"ls\n", "ls\n", nil},
		{"ls\x10\x11rest", "ls", ErrDetached},
		{"\x10x\x10\x10\x11y", "\x10x\x10", ErrDetached},
		{"end\x10", "end\x10", nil},
	} {
		for name, r := range map[string]io.Reader{"whole": strings.NewReader(c.in), "bytewise": iotest.OneByteReader(strings.NewReader(c.in))} {
			got, err := io.ReadAll(Detachable(r, keys))
			if string(got) != c.want || !errors.Is(err, c.err) {
				t.Errorf("%s %q: %q, %v; want %q, %v", name, c.in, got, err, c.want, c.err)
			}
		}
	}
}

func TestParseKeys(t *testing.T) {
	for in, want := range map[string]string{"": "", "a": "a", "ctrl-a,B": "\x01B", "ctrl-[": "\x1b", "CTRL-Z": "\x1a"} {
		if got, err := ParseKeys(in); err != nil || string(got) != want {
			t.Errorf("ParseKeys(%q) = %q, %v", in, got, err)
		}
	}
	for _, bad := range []string{"ctrl-", "ctrl-1", "ab", "a,,b"} {
		if _, err := ParseKeys(bad); err == nil {
			t.Errorf("ParseKeys(%q): no error", bad)
		}
	}
}
