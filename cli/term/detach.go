package term

import (
	"errors"
	"fmt"
	"io"
	"strings"
)

// ErrDetached ends the input of a user who has pressed the detach keys.
var ErrDetached = errors.New("detached")

// DefaultKeys are Docker's.
const DefaultKeys = "ctrl-p,ctrl-q"

// ParseKeys reads "ctrl-p,ctrl-q" or "a,b": each key is a letter or ctrl- with a
// letter or one of @ [ \ ] ^ _. An empty text means that no keys detach.
func ParseKeys(s string) ([]byte, error) {
	if s == "" {
		return nil, nil
	}
	var out []byte
	for _, k := range strings.Split(s, ",") {
		c, ctrl := strings.CutPrefix(strings.ToLower(k), "ctrl-")
		switch {
		case !ctrl && len(k) == 1:
			out = append(out, k[0])
		case ctrl && len(c) == 1 && c[0] >= 'a' && c[0] <= 'z':
			out = append(out, c[0]-'a'+1)
		case ctrl && len(c) == 1 && strings.Contains(`@[\]^_`, c):
			out = append(out, c[0]-'@')
		default:
			return nil, fmt.Errorf("detach key %q: use a character or ctrl- with a letter, as in %s", k, DefaultKeys)
		}
	}
	return out, nil
}

// detachReader ends with ErrDetached after the keys. What looks like their
// beginning is held back until it is known.
type detachReader struct {
	r     io.Reader
	keys  []byte
	seen  int // keys held back
	ready []byte
	err   error
}

// Detachable looks for keys in what r reads.
func Detachable(r io.Reader, keys []byte) io.Reader {
	if len(keys) == 0 {
		return r
	}
	return &detachReader{r: r, keys: keys}
}

func (d *detachReader) Read(p []byte) (int, error) {
	for len(d.ready) == 0 {
		if d.err != nil {
			return 0, d.err
		}
		buf := make([]byte, max(len(p), 1))
		n, err := d.r.Read(buf)
		d.feed(buf[:n])
		if d.err == nil && err != nil {
			d.ready = append(d.ready, d.keys[:d.seen]...)
			d.seen, d.err = 0, err
		}
	}
	n := copy(p, d.ready)
	d.ready = d.ready[n:]
	return n, nil
}

func (d *detachReader) feed(in []byte) {
	for _, c := range in {
		if c == d.keys[d.seen] {
			if d.seen++; d.seen == len(d.keys) {
				d.err = ErrDetached
				return
			}
			continue
		}
		d.ready = append(d.ready, d.keys[:d.seen]...)
		d.seen = 0
		if c == d.keys[0] {
			d.seen = 1
			if len(d.keys) == 1 {
				d.err = ErrDetached
				return
			}
			continue
		}
		d.ready = append(d.ready, c)
	}
}
