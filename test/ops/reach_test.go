package ops

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	version "github.com/containerd/containerd/api/services/version/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/test/lab"
)

// TestOldMirrors: registry.mirrors of version 2 sends the pulls of unmodified clients
// to the mirror.
func TestOldMirrors(t *testing.T) {
	l := lab.New(t)
	reg := l.Registry()
	oci := filepath.Join(l.Dir, "oci")
	if err := lab.Busybox(oci); err != nil {
		t.Fatal(err)
	}
	lab.Run(t, lab.Tool(t, "skopeo"), "copy", "-q", "--dest-tls-verify=false", "oci:"+oci+":busybox", "docker://"+reg.Host+"/library/busybox:latest")
	file := filepath.Join(l.Dir, "c.toml")
	write(t, file, `version = 2
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."registry.invalid"]
endpoint = ["http://127.0.0.1:1", "http://%s"]
[plugins."io.containerd.grpc.v1.cri".registry.configs."%s".auth]
username = "ann"
password = "secret"
`, reg.Host, reg.Host)
	d := l.Daemon("--config", file)
	d.MustCtr("images", "pull", "registry.invalid/library/busybox:latest")
	if info, err := os.Stat(filepath.Join(d.State, "registry", "auth.json")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("credentials: %v %v", info, err)
	}
	// What they no longer say is gone after a reload.
	write(t, file, "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n")
	reload(t, d, "configuration is read again")
	if _, err := os.Stat(filepath.Join(d.State, "registry")); err == nil {
		t.Error("the old files are still there")
	}
	if out, err := d.Ctr("images", "pull", "registry.invalid/library/busybox:latest"); err == nil {
		t.Errorf("it still pulls from the mirror: %s", out)
	}
}

// pair makes a certificate, signed by parent or by itself, and writes it with its key.
func pair(t *testing.T, dir, name string, parent *tls.Certificate) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: parent == nil, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	signer, by := c, any(key)
	if parent != nil {
		signer, by = parent.Leaf, parent.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, c, signer, &key.PublicKey, by)
	if err != nil {
		t.Fatal(err)
	}
	text, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, name+".crt"), "%s", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	write(t, filepath.Join(dir, name+".key"), "%s", pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: text}))
	out, err := tls.LoadX509KeyPair(filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key"))
	if err != nil {
		t.Fatal(err)
	}
	if out.Leaf, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestTCP: over TCP only clients with a certificate of our CA and the right name are
// let in.
func TestTCP(t *testing.T) {
	l := lab.New(t)
	ca := pair(t, l.Dir, "ca", nil)
	other := pair(t, l.Dir, "other-ca", nil)
	pair(t, l.Dir, "server", &ca)
	file, address := filepath.Join(l.Dir, "c.toml"), "127.0.0.1:"+strconv.Itoa(lab.FreePort(t))
	write(t, file, `version = 4
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[plugins."io.containerd.server.v1.grpc-tcp"]
address = %q
tls_ca = "%[2]s/ca.crt"
tls_cert = "%[2]s/server.crt"
tls_key = "%[2]s/server.key"
tls_common_name = "admin"
`, address, l.Dir)
	l.Daemon("--config", file)
	roots := x509.NewCertPool()
	roots.AddCert(ca.Leaf)
	ask := func(creds credentials.TransportCredentials) error {
		conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(creds))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, err = version.NewVersionClient(conn).Version(t.Context(), &emptypb.Empty{})
		return err
	}
	with := func(c ...tls.Certificate) credentials.TransportCredentials {
		return credentials.NewTLS(&tls.Config{RootCAs: roots, Certificates: c})
	}
	if err := ask(with(pair(t, l.Dir, "admin", &ca))); err != nil {
		t.Errorf("the right client: %v", err)
	}
	for name, creds := range map[string]credentials.TransportCredentials{
		"no certificate": with(), "no TLS": insecure.NewCredentials(), "another name": with(pair(t, l.Dir, "eve", &ca)),
		"another CA": with(pair(t, l.Dir, "admin", &other)),
	} {
		if err := ask(creds); status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestPruneReferences: ctr takes the references to layers away, and the layers go.
func TestPruneReferences(t *testing.T) {
	l := lab.New(t)
	oci := filepath.Join(l.Dir, "oci")
	if err := lab.Busybox(oci); err != nil {
		t.Fatal(err)
	}
	lab.Run(t, "tar", "-C", oci, "-cf", filepath.Join(l.Dir, "bb.tar"), ".")
	d := l.Daemon()
	d.MustCtr("images", "import", "--base-name", "bb", filepath.Join(l.Dir, "bb.tar"))
	before := len(strings.Fields(d.MustCtr("content", "ls", "-q")))
	d.MustCtr("content", "prune", "references")
	lab.Until(t, 10*time.Second, "layers are collected", func() bool {
		return len(strings.Fields(d.MustCtr("content", "ls", "-q"))) < before
	})
	d.MustCtr("run", "--rm", "bb:busybox", "one", "true") // the snapshot is there still
	if out := d.MustCtr("leases", "ls", "-q"); strings.TrimSpace(out) != "" {
		t.Errorf("leases left: %s", out)
	}
}
