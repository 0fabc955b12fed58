package daemon

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berthd/berth/daemon/config"
)

func TestStreamTLS(t *testing.T) {
	dir := t.TempDir()
	pair := config.KeyPair{Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
	write := func(cert tls.Certificate) {
		t.Helper()
		key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		err = errors.Join(
			os.WriteFile(pair.Cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}), 0o600),
			os.WriteFile(pair.Key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), 0o600))
		if err != nil {
			t.Fatal(err)
		}
	}
	ask := func(on bool, k config.KeyPair) (*tls.Config, error) {
		p := &parts{}
		p.cfg.Plugins.CRI = config.CRIServer{Address: "127.0.0.1", TLS: on, KeyPair: k}
		return p.streamTLS()
	}
	if c, err := ask(false, config.KeyPair{}); c != nil || err != nil {
		t.Errorf("off: %v %v", c, err)
	}
	for what, tc := range map[string]struct {
		on   bool
		pair config.KeyPair
		want string
	}{
		"a key is missing":  {true, config.KeyPair{Cert: pair.Cert}, "needed both"},
		"not switched on":   {false, pair, "enable_tls_streaming"},
		"no such file":      {true, pair, "no such file"},
		"a cert is missing": {false, config.KeyPair{Key: pair.Key}, "needed both"},
	} {
		if _, err := ask(tc.on, tc.pair); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
	c, err := ask(true, config.KeyPair{})
	if err != nil || len(c.Certificates) != 1 {
		t.Fatalf("self-made: %v", err)
	}
	made, err := x509.ParseCertificate(c.Certificates[0].Certificate[0])
	if err != nil || made.VerifyHostname("127.0.0.1") != nil || made.VerifyHostname("localhost") != nil {
		t.Errorf("self-made: %v %v %v", made.IPAddresses, made.DNSNames, err)
	}
	write(c.Certificates[0])
	fromFile, err := ask(true, pair)
	if err != nil {
		t.Fatal(err)
	}
	other, err := selfSigned("10.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	write(other) // renewed while the daemon runs
	got, err := fromFile.GetCertificate(nil)
	if err != nil || string(got.Certificate[0]) != string(other.Certificate[0]) {
		t.Errorf("a renewed certificate is not taken: %v", err)
	}
}
