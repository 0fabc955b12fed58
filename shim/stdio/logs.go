package stdio

import (
	"fmt"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/shim/crilog"
)

// openLog opens the log for the first stream that names it, and with it the attach
// socket.
func (s *Stdio) openLog(p place, stream string) (sink, error) {
	if s.hub == nil {
		if err := s.openLogFile(p); err != nil {
			return nil, err
		}
		var err error
		if s.hub, err = openHub(s); err != nil {
			return nil, err
		}
	} else if s.config.Stdout != s.config.Stderr {
		return nil, errs.New(errs.InvalidArgument, "stdout and stderr go to different logs")
	}
	sink := &logSink{hub: s.hub, stderr: stream == "stderr"}
	if s.log != nil {
		sink.stream = s.log.Stream(stream)
	}
	return sink, nil
}

func (s *Stdio) openLogFile(p place) error {
	c, err := p.logConfig()
	if err != nil || c.Path == "" {
		return err
	}
	if s.log, err = crilog.Open(c); err != nil {
		return err
	}
	s.log.Changed = func(err error, lines uint64) {
		if err != nil {
			s.config.Log(fmt.Sprintf("log of %s: lines are lost: %v", s.config.ID, err))
			return
		}
		s.config.Log(fmt.Sprintf("log of %s: is written again, %d lines were lost", s.config.ID, lines))
	}
	return nil
}

// logSink writes to the log, if there is one, then to whoever is attached.
type logSink struct {
	stream *crilog.Stream
	hub    *hub
	stderr bool
}

func (l *logSink) Write(p []byte) {
	if l.stream != nil {
		l.stream.Write(p)
	}
	l.hub.output(l.stderr, p)
}

func (l *logSink) Close() {
	if l.stream != nil {
		l.stream.Close()
	}
}
