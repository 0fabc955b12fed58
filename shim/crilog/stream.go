package crilog

import (
	"bytes"
	"sync"
	"time"
)

// flushAt bounds the formatted lines held in memory, in bytes: many short lines
// are much longer in the file.
const flushAt = 128 << 10

// Stream is one of the streams of a log. One goroutine at a time may use it.
type Stream struct {
	log  *Log
	name string
	rest []byte // a line that has not ended yet
}

// Stream returns the stream of the given name, "stdout" or "stderr".
func (l *Log) Stream(name string) *Stream { return &Stream{log: l, name: name} }

// Write takes output of the container. It never fails and keeps nothing of p.
func (s *Stream) Write(p []byte) {
	s.put(func(stamp []byte) {
		for len(p) > 0 {
			end := bytes.IndexByte(p, '\n')
			if end < 0 {
				p = s.partial(stamp, p)
				return
			}
			s.line(stamp, p[:end])
			p = p[end+1:]
		}
	})
}

// Close ends the stream. What has not ended with a newline is written as partial.
func (s *Stream) Close() {
	if len(s.rest) == 0 {
		return
	}
	s.put(func(stamp []byte) { s.entry(stamp, 'P', s.rest) })
	s.rest = nil
}

// put runs format with the log locked and writes what it has formatted.
func (s *Stream) put(format func(stamp []byte)) {
	var buf [40]byte
	stamp := time.Now().UTC().AppendFormat(buf[:0], time.RFC3339Nano)
	l := s.log
	l.mu.Lock()
	defer l.mu.Unlock()
	buffer := buffers.Get().(*[]byte)
	l.out = (*buffer)[:0]
	format(stamp)
	l.flush(l.out)
	*buffer, l.out = l.out, nil
	buffers.Put(buffer)
}

// buffers are shared by all logs, and given back to the system when nothing is
// written for a while: a collection empties a pool.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

// line adds the end of a line.
func (s *Stream) line(stamp, end []byte) {
	if len(s.rest) > 0 {
		end = s.cut(stamp, append(s.rest, end...))
		s.entry(stamp, 'F', end)
		s.rest = nil
		return
	}
	s.entry(stamp, 'F', s.cut(stamp, end))
}

// partial adds to a line that has not ended. It returns nil.
func (s *Stream) partial(stamp, more []byte) []byte {
	if len(s.rest) == 0 {
		more = s.cut(stamp, more)
		s.rest = append([]byte(nil), more...)
		return nil
	}
	s.rest = append(s.rest, more...)
	if rest := s.cut(stamp, s.rest); len(rest) < len(s.rest) {
		s.rest = append([]byte(nil), rest...)
	}
	return nil
}

// cut writes full pieces of a line that is too long and returns the rest.
func (s *Stream) cut(stamp, content []byte) []byte {
	for len(content) > s.log.config.MaxLine {
		s.entry(stamp, 'P', content[:s.log.config.MaxLine])
		content = content[s.log.config.MaxLine:]
	}
	return content
}

func (s *Stream) entry(stamp []byte, tag byte, content []byte) {
	l := s.log
	if n := len(l.out) + len(stamp) + len(s.name) + len(content) + 5; len(l.out) > 0 && (n > flushAt ||
		l.config.MaxSize > 0 && l.size+int64(n) > l.config.MaxSize) {
		l.flush(l.out)
		l.out = l.out[:0]
	}
	l.out = append(l.out, stamp...)
	l.out = append(l.out, ' ')
	l.out = append(l.out, s.name...)
	l.out = append(l.out, ' ', tag, ' ')
	l.out = append(l.out, content...)
	l.out = append(l.out, '\n')
}
