package daemon

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"time"

	"github.com/berthd/berth/server/cri"
	"github.com/berthd/berth/server/stream"
)

// newStreams opens the server of exec, attach and port-forward.
func (p *parts) newStreams(ctx context.Context) (*stream.Server, error) {
	cfg := p.cfg.Plugins.CRI
	t, err := p.streamTLS()
	if err != nil {
		return nil, err
	}
	return stream.New(ctx, stream.Config{
		Address: net.JoinHostPort(cfg.Address, cfg.Port), TLS: t, IdleTimeout: cfg.IdleTimeout.Std(), Namespace: cri.Namespace, Pods: p.pods, Log: p.log,
	})
}

// streamTLS is what the configuration says of TLS for streams; nil is none. A
// certificate's files are read again for each client: a renewed one is taken at once.
func (p *parts) streamTLS() (*tls.Config, error) {
	cfg := p.cfg.Plugins.CRI
	pair := cfg.KeyPair
	switch {
	case (pair.Cert == "") != (pair.Key == ""):
		return nil, errors.New("x509_key_pair_streaming: tls_cert_file and tls_key_file are needed both")
	case pair.Cert != "" && !cfg.TLS:
		return nil, errors.New("x509_key_pair_streaming is set: set enable_tls_streaming = true, too, or the streams are not encrypted")
	case !cfg.TLS:
		return nil, nil
	case pair.Cert == "":
		cert, err := selfSigned(cfg.Address)
		if err != nil {
			return nil, fmt.Errorf("make a certificate for streams: %w", err)
		}
		return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}}, nil
	}
	load := func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		cert, err := tls.LoadX509KeyPair(pair.Cert, pair.Key)
		if err != nil {
			return nil, fmt.Errorf("certificate for streams: %w", err)
		}
		return &cert, nil
	}
	if _, err := load(nil); err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: load}, nil
}

// selfSigned makes a certificate that lives as long as the daemon: kubelets do not
// check who it is that their own runtime sends them to.
func selfSigned(address string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return tls.Certificate{}, err
	}
	name, err := os.Hostname()
	if err != nil {
		return tls.Certificate{}, err
	}
	c := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "berth streams on " + name}, DNSNames: []string{name, "localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(10, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if ip := net.ParseIP(address); ip != nil {
		c.IPAddresses = []net.IP{ip}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}
