package registrytest

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Fault is one way to go wrong. Faults are looked through in the order in which
// they were added; the first that matches and is not used up serves the request.
type Fault struct {
	Method string // "" any
	Path   string // part of the path; "" any
	Skip   int    // requests that pass before it begins
	Times  int    // requests that it serves; 0: all from then on
	// Do serves the request; next is the registry without faults.
	Do func(w http.ResponseWriter, q *http.Request, next http.Handler)
}

// Add puts a fault in place until Reset.
func (r *Registry) Add(f Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f.Times == 0 {
		f.Times = -1
	}
	r.faults = append(r.faults, &f)
}

// faultFor finds and uses up a fault; r.mu is held.
func (r *Registry) faultFor(q *http.Request) *Fault {
	for _, f := range r.faults {
		if f.Times == 0 || f.Method != "" && f.Method != q.Method || !strings.Contains(q.URL.Path, f.Path) {
			continue
		}
		if f.Skip > 0 {
			f.Skip--
			continue
		}
		f.Times--
		return f
	}
	return nil
}

// Doer is what a Fault does.
type Doer = func(w http.ResponseWriter, q *http.Request, next http.Handler)

// Status answers with a status and headers given as name, value, …
func Status(code int, header ...string) Doer {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Add(header[i], header[i+1])
		}
		fail(w, code, strings.ToUpper(strings.ReplaceAll(http.StatusText(code), " ", "_")))
	}
}

// Body answers 200 with a body and headers given as name, value, …
func Body(body string, header ...string) Doer {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		_, _ = w.Write([]byte(body))
	}
}

// Redirect sends the request elsewhere; the query is kept off.
func Redirect(code int, to string) Doer {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("Location", to)
		w.WriteHeader(code)
	}
}

// Header serves the request and then changes the answer's header: name, value, …
// An empty value takes the header away.
func Header(header ...string) Doer {
	return func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		b := &bodyWriter{ResponseWriter: w, left: -1, header: header}
		next.ServeHTTP(b, q)
		if !b.wrote {
			b.WriteHeader(http.StatusOK)
		}
	}
}

// DropAfter cuts the connection after n bytes of the body.
func DropAfter(n int) Doer {
	return func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		next.ServeHTTP(&bodyWriter{ResponseWriter: w, left: n}, q)
	}
}

// Drop cuts the connection without an answer.
func Drop() Doer {
	return func(http.ResponseWriter, *http.Request, http.Handler) { panic(http.ErrAbortHandler) }
}

// Trickle sends n bytes of the body every interval.
func Trickle(n int, every time.Duration) Doer {
	return func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		next.ServeHTTP(&bodyWriter{ResponseWriter: w, left: -1, step: n, every: every, done: q.Context().Done()}, q)
	}
}

// StallAfter sends n bytes of the body, then nothing until the client goes away.
// A negative n sends not even a header.
func StallAfter(n int) Doer {
	return func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		if n < 0 {
			<-q.Context().Done()
			return
		}
		next.ServeHTTP(&bodyWriter{ResponseWriter: w, left: n, stall: true, done: q.Context().Done()}, q)
	}
}

// Wrong flips every bit of the body.
func Wrong() Doer {
	return func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		next.ServeHTTP(&bodyWriter{ResponseWriter: w, left: -1, flip: true}, q)
	}
}

// IgnoreRange serves the whole content whatever Range says.
func IgnoreRange() Doer {
	return func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		q.Header.Del("Range")
		next.ServeHTTP(w, q)
	}
}

// Endless answers 200 with a body that ends when the client goes away.
func Endless(header ...string) Doer {
	return func(w http.ResponseWriter, q *http.Request, _ http.Handler) {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		chunk := make([]byte, 64<<10)
		for i := range chunk {
			chunk[i] = ' ' // harmless in JSON
		}
		for q.Context().Err() == nil {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	}
}

// Raw takes over the connection of an HTTP/1 request and writes bytes to it as
// they are, each piece after a pause; then it closes it.
func Raw(pause time.Duration, pieces ...string) Doer {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer conn.Close()
		for i, p := range pieces {
			if i > 0 {
				time.Sleep(pause)
			}
			if _, err := conn.Write([]byte(p)); err != nil {
				return
			}
		}
	}
}

// bodyWriter does to a body what several faults want.
type bodyWriter struct {
	http.ResponseWriter
	left   int // bytes until the end; -1: no end
	stall  bool
	flip   bool
	step   int
	every  time.Duration
	done   <-chan struct{}
	header []string
	wrote  bool
}

func (b *bodyWriter) WriteHeader(code int) {
	b.wrote = true
	for i := 0; i+1 < len(b.header); i += 2 {
		if b.header[i+1] == "" {
			b.Header().Del(b.header[i])
		} else {
			b.Header().Set(b.header[i], b.header[i+1])
		}
	}
	if n, err := strconv.Atoi(b.Header().Get("Content-Length")); err == nil && b.left >= 0 && n <= b.left {
		b.left = -1 // all of it passes
	}
	b.ResponseWriter.WriteHeader(code)
}

func (b *bodyWriter) Write(p []byte) (int, error) {
	if !b.wrote {
		b.WriteHeader(http.StatusOK)
	}
	if b.flip {
		p = append([]byte{}, p...)
		for i := range p {
			p[i] ^= 0xff
		}
	}
	if b.step > 0 {
		return b.trickle(p)
	}
	if b.left < 0 || len(p) <= b.left {
		if b.left >= 0 {
			b.left -= len(p)
		}
		return b.ResponseWriter.Write(p)
	}
	_, _ = b.ResponseWriter.Write(p[:b.left])
	_ = http.NewResponseController(b.ResponseWriter).Flush()
	if b.stall {
		<-b.done
	}
	panic(http.ErrAbortHandler)
}

func (b *bodyWriter) trickle(p []byte) (int, error) {
	sent := 0
	for sent < len(p) {
		n, err := b.ResponseWriter.Write(p[sent:min(sent+b.step, len(p))])
		sent += n
		if err != nil {
			return sent, err
		}
		_ = http.NewResponseController(b.ResponseWriter).Flush()
		select {
		case <-b.done:
			panic(http.ErrAbortHandler)
		case <-time.After(b.every):
		}
	}
	return sent, nil
}
