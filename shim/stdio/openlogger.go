package stdio

import (
	"golang.org/x/sys/unix"
)

// OpenLogger opens the log and the attach socket for a process whose streams are the
// FIFOs stdin, stdout and stderr; "" is none. It begins to copy. The FIFOs of the
// output do not end before Release.
func OpenLogger(c Config, fifos [3]string) (*Stdio, error) {
	s := &Stdio{config: c, exited: make(chan struct{})}
	err := s.openFIFOs(fifos)
	if err == nil {
		err = s.Started(nil)
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Stdio) openFIFOs(fifos [3]string) error {
	p, err := parsePlace(s.config.Stdout)
	if err != nil {
		return err
	}
	for i, path := range fifos[1:] {
		if path == "" {
			continue
		}
		src, err := openFIFO(path, unix.O_RDONLY)
		if err != nil {
			return err
		}
		s.files = append(s.files, src)
		hold, err := openFIFO(path, unix.O_WRONLY)
		if err != nil {
			return err
		}
		s.writers = append(s.writers, hold)
		dst, err := s.openLog(p, streamNames[i+1])
		if err != nil {
			return err
		}
		s.outs = append(s.outs, output{src, dst})
	}
	if fifos[0] != "" {
		// Both ends: nobody waits for the other to open it.
		s.stdin, err = openFIFO(fifos[0], unix.O_RDWR)
	}
	return err
}

// Release lets the output end when whoever writes it does.
func (s *Stdio) Release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.writers {
		_ = f.Close()
	}
	s.writers = nil
}

// Finish waits for the end of all output, tells it to attach clients, and closes. How
// the process ended is not known here: they are told of success.
func (s *Stdio) Finish() {
	s.mu.Lock()
	copiers := s.copiers
	s.mu.Unlock()
	for _, c := range copiers {
		c.wait()
	}
	s.once.Do(func() { close(s.exited) })
	if s.hub != nil {
		s.hub.end(0)
	}
	s.Close()
}
