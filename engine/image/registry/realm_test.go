package registry

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/engine/image/registry/registrytest"
)

func TestRealmRules(t *testing.T) {
	for _, tc := range []struct {
		scheme, host, realm string
		asked, sent         bool
	}{
		{"https", "r.example", "https://auth.example/t", true, true},
		{"https", "r.example", "https://auth.example/t?x=1", true, true},
		{"https", "r.example", "http://r.example/t", false, false},
		{"https", "r.example", "http://localhost/t", false, false},
		{"https", "localhost:5000", "http://localhost:5001/t", true, true},
		{"https", "localhost:5000", "http://r.example/t", false, false},
		{"http", "localhost:5000", "http://127.0.0.1:5001/t", true, true},
		{"http", "localhost:5000", "http://r.example/t", false, false},
		{"http", "localhost:5000", "https://r.example/t", true, true},
		{"http", "r.example", "http://r.example:5001/t", true, true},
		{"http", "r.example", "http://other.example/t", true, false},
		{"http", "r.example", "https://other.example/t", true, true},
		{"https", "r.example", "ftp://r.example/t", false, false},
		{"https", "r.example", "file:///etc/passwd", false, false},
		{"https", "r.example", "gopher://r.example/", false, false},
		{"https", "r.example", "/token", false, false},
		{"https", "r.example", "//r.example/token", false, false},
		{"https", "r.example", "", false, false},
		{"https", "r.example", "https://", false, false},
		{"https", "r.example", "https:opaque", false, false},
		{"https", "r.example", "https://u:p@auth.example/t", false, false},
		{"https", "r.example", "https://auth.example/t#f", false, false},
		{"https", "r.example", "https://auth.example/\nHost: x", false, false},
		{"https", "r.example", "https://[fe80::1%25eth0]/t", false, false},
		{"https", "r.example", "https://a/" + strings.Repeat("x", 5000), false, false},
	} {
		s, err := checkRealm(&endpoint{scheme: tc.scheme, host: tc.host}, tc.scheme, tc.realm)
		if (err == nil) != tc.asked || s.mayBeSent != tc.sent {
			t.Errorf("%s://%s names %.60q: asked %t, sent %t, %v", tc.scheme, tc.host, tc.realm, err == nil, s.mayBeSent, err)
		}
	}
}

func TestGuardClasses(t *testing.T) {
	for ip, want := range map[string]reach{
		"203.0.113.5": public, "2001:db8::1": public, "10.1.2.3": private, "192.168.0.1": private, "172.31.255.255": private,
		"100.64.0.1": private, "fd00::1": private, "127.0.0.1": loopback, "127.8.8.8": loopback, "::1": loopback, "0.0.0.0": loopback, "::": loopback,
		"0.1.2.3": loopback, "169.254.169.254": linkLocal, "fe80::1": linkLocal, "::ffff:169.254.169.254": linkLocal, "::ffff:127.0.0.1": loopback,
		"::ffff:10.0.0.1": private, "64:ff9b::a9fe:a9fe": linkLocal, "fd00:ec2::254": linkLocal, "100.100.100.200": linkLocal, "224.0.0.1": linkLocal,
	} {
		if got := reachOf(netip.MustParseAddr(ip)); got != want {
			t.Errorf("%s is %s, want %s", ip, got, want)
		}
	}
	g := guard{on: true, from: public, strict: true}
	for host, ok := range map[string]bool{
		"auth.example": true, "auth.example:8443": true, "localhost": false, "x.localhost.": false, "127.0.0.1": false, "[::1]:80": false,
		"2130706433": false, "0177.0.0.1": false, "0x7f.1": false, "127.1": false, "10.0.0.1": false, "203.0.113.1": true, "a.b.0x": false, "1.2.3.4.5": false,
	} {
		if err := g.allowsHost(host); (err == nil) != ok {
			t.Errorf("%s: %v", host, err)
		}
	}
}

// TestTokenServerPlaces is R02: a realm that leads closer to this machine than the
// registry is gets no request at all.
func TestTokenServerPlaces(t *testing.T) {
	for _, tc := range []struct {
		registryIP, realmHost, realmIP string
		ok                             bool
	}{
		{"203.0.113.1", "auth.example", "203.0.113.2", true},
		{"203.0.113.1", "auth.example", "10.0.0.1", false},
		{"203.0.113.1", "auth.example", "127.0.0.1", false},
		{"203.0.113.1", "auth.example", "169.254.169.254", false},
		{"203.0.113.1", "auth.example", "fd00:ec2::254", false},
		{"203.0.113.1", "auth.example", "::ffff:169.254.169.254", false},
		{"203.0.113.1", "169.254.169.254", "203.0.113.2", true}, // pretended by the test: the address decides
		{"203.0.113.1", "2852039166", "169.254.169.254", false},
		{"10.0.0.1", "auth.example", "10.0.0.2", true},
		{"10.0.0.1", "auth.example", "127.0.0.1", false},
		{"10.0.0.1", "auth.example", "169.254.169.254", false},
		{"127.0.0.1", "auth.example", "10.0.0.2", true},
		{"127.0.0.1", "auth.example", "169.254.169.254", false},
		{"169.254.169.254", "auth.example", "169.254.169.254", true},
	} {
		t.Run(tc.registryIP+" "+tc.realmHost+" "+tc.realmIP, func(t *testing.T) {
			auth := registrytest.Start(t, registrytest.Options{Users: users})
			reg := registrytest.Start(t, registrytest.Options{Auth: registrytest.Token, Realm: "http://" + tc.realmHost + ":80/token"})
			h := newHarness(t, quickLimits())
			h.route(map[string]place{"r.example:80": {reg.Host, tc.registryIP}, netJoin(tc.realmHost): {auth.Host, tc.realmIP}})
			_, _, err := h.Resolve(t.Context(), parse(t, "r.example:80/a/b:c"), Options{DefaultScheme: "http"})
			if err == nil {
				t.Fatal("resolved without a token")
			}
			if tc.realmHost == "169.254.169.254" { // refused by its spelling already
				tc.ok = false
			}
			if got := len(auth.Requests()) > 0; got != tc.ok {
				t.Errorf("the token server was asked: %t, want %t (%v)", got, tc.ok, err)
			}
			if !tc.ok {
				wantKind(t, err, errs.PermissionDenied)
			}
		})
	}
}

func netJoin(host string) string { return host + ":80" }
