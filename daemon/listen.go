package daemon

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/berthd/berth/daemon/config"
)

// listen makes a socket that its owner may use, and its group if that is another than
// root. A socket file that nobody serves is left by a dead daemon and replaced; the
// root's lock has shown that none lives.
func listen(path string, uid, gid int) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, err
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: another daemon serves it; give this one its own --address", path), c.Close())
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	old := syscall.Umask(0o177)
	defer syscall.Umask(old)
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if uid == os.Geteuid() && gid == os.Getegid() {
		return l, nil
	}
	if err = os.Chown(path, uid, gid); err == nil {
		err = os.Chmod(path, 0o660)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("give %s to user %d and group %d: %w", path, uid, gid, err), l.Close())
	}
	return l, nil
}

// trust is how the TCP service knows itself and its clients: without a certificate it
// speaks plainly, without a CA it lets everybody in.
func trust(t config.TCP) (credentials.TransportCredentials, error) {
	if t.Cert == "" {
		return nil, nil
	}
	pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
	if err != nil {
		return nil, fmt.Errorf("certificate of the TCP service: %w", err)
	}
	c := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	if t.CA == "" {
		return credentials.NewTLS(c), nil
	}
	pem, err := os.ReadFile(t.CA)
	if err != nil {
		return nil, fmt.Errorf("CA of the TCP service's clients: %w", err)
	}
	c.ClientCAs, c.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
	if !c.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("CA of the TCP service's clients: %s holds no certificate", t.CA)
	}
	if want := t.CommonName; want != "" {
		c.VerifyConnection = func(s tls.ConnectionState) error {
			if got := s.PeerCertificates[0].Subject.CommonName; got != want {
				return fmt.Errorf("the client is %q, not %q", got, want)
			}
			return nil
		}
	}
	return credentials.NewTLS(c), nil
}

// sockets are what the daemon serves on.
type sockets struct {
	api, shims net.Listener
	tcp        net.Listener // nil: not served
	trust      credentials.TransportCredentials
	metrics    net.Listener // nil: not served
	debug      net.Listener // nil: not served
}

func (s sockets) close() error {
	var all []error
	for _, l := range []net.Listener{s.api, s.shims, s.tcp, s.metrics, s.debug} {
		if l != nil {
			all = append(all, l.Close())
		}
	}
	return errors.Join(all...)
}

func (p *parts) sockets() (s sockets, err error) {
	set := p.cfg.Plugins
	if s.api, err = listen(set.GRPC.Address, set.GRPC.UID, set.GRPC.GID); err != nil {
		return s, err
	}
	if s.shims, err = listen(p.cfg.TTRPCAddress(), set.TTRPC.UID, set.TTRPC.GID); err != nil {
		return s, errors.Join(err, s.close())
	}
	if a := set.DebugSock.Address; a != "" {
		if s.debug, err = listen(a, set.DebugSock.UID, set.DebugSock.GID); err != nil {
			return s, errors.Join(err, s.close())
		}
	}
	if a := set.Metrics.Address; a != "" {
		if s.metrics, err = net.Listen("tcp", a); err != nil {
			return s, errors.Join(fmt.Errorf("serve metrics: %w", err), s.close())
		}
	}
	if set.TCP.Address == "" {
		return s, nil
	}
	if s.trust, err = trust(set.TCP); err != nil {
		return s, errors.Join(err, s.close())
	}
	if s.tcp, err = net.Listen("tcp", set.TCP.Address); err != nil {
		return s, errors.Join(fmt.Errorf("serve the APIs over TCP: %w", err), s.close())
	}
	if set.TCP.CA == "" {
		p.log.Warn("everybody who reaches this address is root here: set tls_ca", "address", s.tcp.Addr())
	}
	return s, nil
}
