package registry

import (
	"context"
	"errors"
	"io"
	"time"
)

var (
	errStall = errors.New("no byte for too long")
	errSlow  = errors.New("bytes come too slowly")
	errDead  = errors.New("almost no bytes come")
)

// watch ends an exchange whose body stalls or trickles. Only time spent waiting
// for bytes counts: a reader that is busy elsewhere does not make a host slow.
type watch struct {
	limits Limits
	cancel context.CancelCauseFunc
	timer  *time.Timer
	// slow says what rate is too little, in bytes/s: SlowRate while another try
	// might be better, DeadRate later.
	slow int64

	waited time.Duration // in this window
	got    int64         // bytes in this window
}

func newWatch(l Limits, cancel context.CancelCauseFunc) *watch {
	w := &watch{limits: l, cancel: cancel, slow: l.DeadRate}
	w.timer = time.AfterFunc(l.Stall, func() { cancel(errStall) })
	w.timer.Stop()
	return w
}

func (w *watch) stop() { w.timer.Stop() }

// read reads from body and cancels the exchange when it breaks the limits.
func (w *watch) read(body io.Reader, p []byte) (int, error) {
	began := time.Now()
	w.timer.Reset(w.limits.Stall)
	n, err := body.Read(p)
	w.timer.Stop()
	w.waited += time.Since(began)
	w.got += int64(n)
	if w.waited < w.limits.RateWindow {
		return n, err
	}
	rate := int64(float64(w.got) / w.waited.Seconds())
	w.waited, w.got = 0, 0
	switch {
	case err != nil:
	case rate < w.limits.DeadRate:
		w.cancel(errDead)
		err = errDead
	case rate < w.slow:
		w.cancel(errSlow)
		err = errSlow
	}
	return n, err
}

type watchedReader struct {
	w    *watch
	body io.Reader
}

func (r watchedReader) Read(p []byte) (int, error) { return r.w.read(r.body, p) }

func (w *watch) reader(body io.Reader) io.Reader { return watchedReader{w, body} }
