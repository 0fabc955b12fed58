package registry

import (
	"context"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/engine/image/registry/registrytest"
)

var users = map[string]string{"ann": "s3cret-pass"}

func TestAuthentication(t *testing.T) {
	const (
		ok     = ""
		unauth = "unauth"
	)
	give := func(c Credential) Options {
		return Options{Credentials: func(context.Context, string) (Credential, error) { return c, nil }}
	}
	ann := Credential{Username: "ann", Secret: "s3cret-pass"}
	bad := Credential{Username: "ann", Secret: "wrong-pass"}
	for name, tc := range map[string]struct {
		reg  registrytest.Options
		opts Options
		want string
	}{
		"basic":                         {registrytest.Options{Auth: registrytest.Basic, Users: users}, give(ann), ok},
		"basic, wrong":                  {registrytest.Options{Auth: registrytest.Basic, Users: users}, give(bad), unauth},
		"basic, nothing":                {registrytest.Options{Auth: registrytest.Basic, Users: users}, Options{}, unauth},
		"basic, only an identity token": {registrytest.Options{Auth: registrytest.Basic, Users: users}, give(Credential{IdentityToken: "idtoken"}), unauth},
		"basic, raw header": {registrytest.Options{Auth: registrytest.Basic, Users: users},
			give(Credential{Header: "Basic " + basicValue(ann)}), ok},
		"token":                      {registrytest.Options{Auth: registrytest.Token, Users: users}, give(ann), ok},
		"token over tls":             {registrytest.Options{Auth: registrytest.Token, Users: users, TLS: true}, give(ann), ok},
		"token, GET only":            {registrytest.Options{Auth: registrytest.Token, Users: users, NoPost: true}, give(ann), ok},
		"token, wrong":               {registrytest.Options{Auth: registrytest.Token, Users: users}, give(bad), unauth},
		"token, nothing":             {registrytest.Options{Auth: registrytest.Token, Users: users}, Options{}, unauth},
		"token, anonymous":           {registrytest.Options{Auth: registrytest.Token, Anonymous: true}, Options{}, ok},
		"token, refresh":             {registrytest.Options{Auth: registrytest.Token, Refresh: "refresh-tok"}, give(Credential{IdentityToken: "refresh-tok"}), ok},
		"token, secret without name": {registrytest.Options{Auth: registrytest.Token, Refresh: "refresh-tok"}, give(Credential{Secret: "refresh-tok"}), ok},
		"token, refresh wrong":       {registrytest.Options{Auth: registrytest.Token, Refresh: "refresh-tok"}, give(Credential{IdentityToken: "other-tok"}), unauth},
		"token, registry token bad":  {registrytest.Options{Auth: registrytest.Token}, give(Credential{RegistryToken: "abcdef"}), unauth},
	} {
		t.Run(name, func(t *testing.T) {
			reg, h, _, ref := setup(t, tc.reg, 1000)
			_, err := h.pull(t.Context(), ref, tc.opts)
			if tc.want == ok && err != nil {
				t.Fatal(err)
			}
			if tc.want == unauth {
				wantKind(t, err, errs.Unauthenticated)
				if n := len(reg.Requests()); n > 4 {
					t.Errorf("%d requests for a refusal", n)
				}
			}
		})
	}
}

func TestTokensAreSharedAndRenewed(t *testing.T) {
	reg, h, _, ref := setup(t, registrytest.Options{Auth: registrytest.Token, Users: users, NoPost: true}, 1000)
	opts := Options{Credentials: login("ann", "s3cret-pass")}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := h.pull(t.Context(), ref, opts); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := reg.Count("GET", "/token"); n != 1 {
		t.Errorf("%d token requests for 20 pulls of one repository", n)
	}
	reg.ExpireTokens() // the registry forgets: the client has to notice
	if _, err := h.pull(t.Context(), ref, opts); err != nil {
		t.Fatal(err)
	}
	if n := reg.Count("GET", "/token"); n != 2 {
		t.Errorf("%d token requests after the tokens were revoked", n)
	}
	if n := reg.Count("POST", "/token"); n > 2 {
		t.Errorf("the POST form was tried %d times on a server that does not know it", n)
	}
	// Another user's token is another token.
	_, err := h.pull(t.Context(), ref, Options{Credentials: login("bob", "x-secret")})
	wantKind(t, err, errs.Unauthenticated)
}

func TestCredentialsExpireAndAreAskedOnce(t *testing.T) {
	_, h, _, ref := setup(t, registrytest.Options{Auth: registrytest.Basic, Users: users}, 1000)
	asked := 0
	life := time.Hour
	opts := Options{Credentials: func(_ context.Context, host string) (Credential, error) {
		asked++
		if host != ref.Host {
			t.Errorf("asked for %s", host)
		}
		return Credential{Username: "ann", Secret: "s3cret-pass", Expires: time.Now().Add(life)}, nil
	}}
	if _, err := h.pull(t.Context(), ref, opts); err != nil || asked != 1 {
		t.Errorf("asked %d times, %v", asked, err)
	}
	life = -time.Second
	if _, err := h.pull(t.Context(), ref, opts); err != nil || asked < 3 {
		t.Errorf("expired at once: asked %d times, %v", asked, err)
	}
	_, err := h.pull(t.Context(), ref, Options{Credentials: func(context.Context, string) (Credential, error) {
		return Credential{}, errs.New(errs.Unavailable, "the client went away")
	}})
	if err == nil || !strings.Contains(err.Error(), "the client went away") {
		t.Errorf("a callback that fails: %v", err)
	}
}

func TestChallengeParser(t *testing.T) {
	p := func(kv ...string) map[string]string {
		m := map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			m[kv[i]] = kv[i+1]
		}
		return m
	}
	for in, want := range map[string][]challenge{
		`Bearer realm="https://a/t",service="s",scope="repository:a/b:pull,push"`: {{"bearer", p("realm", "https://a/t", "service", "s", "scope", "repository:a/b:pull,push")}},
		`Basic realm="x"`:                        {{"basic", p("realm", "x")}},
		`Basic realm="x", Bearer realm="y"`:      {{"basic", p("realm", "x")}, {"bearer", p("realm", "y")}},
		`BEARER Realm = "a\"b" , x=y`:            {{"bearer", p("realm", `a"b`, "x", "y")}},
		`Bearer realm=https://a/t?x=1,b=c`:       {{"bearer", p("realm", "https://a/t?x=1", "b", "c")}},
		`Negotiate, Basic realm="x"`:             {{"negotiate", p()}, {"basic", p("realm", "x")}},
		`Bearer realm="a",realm="b"`:             {{"bearer", p("realm", "a")}},
		`Bearer realm="never closed`:             {{"bearer", p()}},
		``:                                       nil,
		`"`:                                      nil,
		`Bearer =`:                               {{"bearer", p()}},
		`,,, ,`:                                  nil,
		strings.Repeat(`Basic realm="x", `, 100): nil, // the count is checked below
		strings.Repeat("x", 10_000):              nil,
	} {
		got := parseChallenges([]string{in})
		if len(in) == 1700 {
			if len(got) != maxChallenges {
				t.Errorf("100 challenges gave %d", len(got))
			}
			continue
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %+v, want %+v", in, got, want)
		}
	}
}

func TestMergeScopes(t *testing.T) {
	got := mergeScopes([]string{"repository:b:push,pull", "repository:a:pull", "repository:b:pull", "bad", "repository:x y:pull", "registry:catalog:*"})
	want := []string{"registry:catalog:*", "repository:a:pull", "repository:b:pull,push"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %q", got)
	}
}

// TestCredentialsStayAtTheirOrigin is CVE-2020-15157 and CVE-2026-50151: whatever
// A answers, B sees neither a credential nor a token nor a configured header.
func TestCredentialsStayAtTheirOrigin(t *testing.T) {
	for _, code := range []int{301, 302, 303, 307, 308} {
		for name, fault := range map[string]func(b *registrytest.Registry){
			"quiet": func(*registrytest.Registry) {},
			"asks basic": func(b *registrytest.Registry) {
				b.Add(registrytest.Fault{Do: registrytest.Status(401, "WWW-Authenticate", `Basic realm="b"`)})
			},
			"asks bearer": func(b *registrytest.Registry) {
				b.Add(registrytest.Fault{Do: registrytest.Status(401, "WWW-Authenticate", `Bearer realm="`+b.URL+`/token"`)})
			},
			"sends cookie": func(b *registrytest.Registry) {
				b.Add(registrytest.Fault{Do: registrytest.Header("Set-Cookie", "a=b")})
			},
		} {
			t.Run(fmt.Sprint(code, " ", name), func(t *testing.T) {
				a, h, img, ref := setup(t, registrytest.Options{Auth: registrytest.Token, Users: users}, 1000)
				b := registrytest.Start(t, registrytest.Options{})
				b.Push("lib/app", "", img)
				fault(b)
				a.Add(registrytest.Fault{Path: "/blobs/", Do: func(w http.ResponseWriter, q *http.Request, next http.Handler) {
					if q.Header.Get("Authorization") == "" {
						next.ServeHTTP(w, q)
						return
					}
					registrytest.Redirect(code, b.URL+q.URL.Path)(w, q, next)
				}})
				opts := Options{Credentials: login("ann", "s3cret-pass"), Header: http.Header{"X-Own": {"canary-header"}}}
				_, err := h.pull(t.Context(), ref, opts)
				if strings.HasPrefix(name, "asks") != (err != nil) {
					t.Errorf("pull: %v", err)
				}
				if len(b.Requests()) == 0 {
					t.Error("B was never asked")
				}
				for _, q := range b.Requests() {
					if q.Header.Get("Authorization") != "" || q.Header.Get("Cookie") != "" || q.Header.Get("X-Own") != "" || q.Path == "/token" {
						t.Errorf("B saw %s %s %v", q.Method, q.Path, q.Header)
					}
				}
			})
		}
	}
}

// TestRedirectBackIsAnonymous: A sends to B, B sends back to A.
func TestRedirectBackIsAnonymous(t *testing.T) {
	a, h, _, ref := setup(t, registrytest.Options{Auth: registrytest.Basic, Users: users}, 1000)
	b := registrytest.Start(t, registrytest.Options{})
	b.Add(registrytest.Fault{Do: registrytest.Redirect(302, a.URL+"/v2/other/private/manifests/x")})
	a.Add(registrytest.Fault{Path: "/lib/app/manifests/", Skip: 1, Times: 1, Do: registrytest.Redirect(302, b.URL+"/x")})
	_, _, err := h.Resolve(t.Context(), ref, Options{Credentials: login("ann", "s3cret-pass")})
	wantKind(t, err, errs.Unauthenticated)
	for _, q := range a.Requests() {
		if strings.Contains(q.Path, "private") && q.Header.Get("Authorization") != "" {
			t.Error("the credential was sent where another host pointed")
		}
	}
}

// TestRegistryChangesItsMind: what it took before is no longer what it takes.
func TestRegistryChangesItsMind(t *testing.T) {
	reg, h, _, ref := setup(t, registrytest.Options{Auth: registrytest.Token, Users: users}, 10)
	opts := Options{Credentials: login("ann", "s3cret-pass")}
	for _, auth := range []registrytest.Auth{registrytest.Token, registrytest.Basic, registrytest.Token, registrytest.NoAuth} {
		reg.Opts.Auth = auth
		reg.ExpireTokens()
		if _, err := h.pull(t.Context(), ref, opts); err != nil {
			t.Errorf("way %d: %v", auth, err)
		}
	}
}

func TestTokenAnswers(t *testing.T) {
	now := time.Unix(1000, 0)
	for in, want := range map[string]time.Duration{ // 0: refused
		`{"token":"abc"}`:                                  54 * time.Second,
		`{"access_token":"abc","expires_in":300}`:          270 * time.Second,
		`{"token":"abc","expires_in":0}`:                   54 * time.Second,
		`{"token":"abc","expires_in":-1}`:                  54 * time.Second,
		`{"token":"abc","expires_in":5}`:                   54 * time.Second,
		`{"token":"abc","expires_in":9223372036854775808}`: 54 * time.Minute,
		`{"token":"abc","expires_in":1e400}`:               54 * time.Second,
		`{"token":"abc","expires_in":"soon"}`:              54 * time.Second,
		`{"token":"a\nb"}`:                                 0,
		`{"token":"a b"}`:                                  0,
		`{"token":"ä"}`:                                    0,
		`{"token":"a\u0000"}`:                              0,
		`{"token":""}`:                                     0,
		`{}`:                                               0,
		`<html>`:                                           0,
		`{"token":"` + strings.Repeat("x", maxToken+1) + `"}`: 0,
	} {
		tok, err := parseToken([]byte(in), now)
		if (err == nil) != (want > 0) || err == nil && tok.refresh.Sub(now) != want {
			t.Errorf("%.60s: %v, good for %s, want %s", in, err, tok.refresh.Sub(now), want)
		}
	}
}

func TestTokenServerMayNotRedirect(t *testing.T) {
	for _, code := range []int{301, 302, 307, 308} {
		evil := registrytest.Start(t, registrytest.Options{})
		evil.Add(registrytest.Fault{Do: registrytest.Body(`{"token":"evil-token"}`)})
		reg, h, _, ref := setup(t, registrytest.Options{Auth: registrytest.Token, Users: users}, 10)
		reg.Add(registrytest.Fault{Path: "/token", Do: registrytest.Redirect(code, evil.URL+"/token")})
		if _, err := h.pull(t.Context(), ref, Options{Credentials: login("ann", "s3cret-pass")}); err == nil {
			t.Error("pulled")
		}
		if len(evil.Requests()) != 0 {
			t.Errorf("%d: the redirect was followed", code)
		}
	}
}

func TestScopesOfAMirrorBelowAPath(t *testing.T) {
	reg := registrytest.Start(t, registrytest.Options{Auth: registrytest.Token, Anonymous: true})
	img := layered(100)
	reg.Push("cache/lib/app", "v1", img)
	h := newHarness(t, quickLimits())
	h.hosts(t, "far.example", fmt.Sprintf("fallback = false\n[host.%q]\noverride_path = true\n", reg.URL+"/v2/cache"))
	if _, err := h.pull(t.Context(), parse(t, "far.example/lib/app:v1"), Options{}); err != nil {
		t.Fatal(err)
	}
	for _, q := range reg.Requests() {
		if q.Path == "/token" && strings.Join(q.Query["scope"], " ") != "repository:cache/lib/app:pull" {
			t.Errorf("scopes %q", q.Query["scope"])
		}
		if q.Path != "/token" && q.Query.Get("ns") != "far.example" {
			t.Errorf("%s: ns %q", q.Path, q.Query.Get("ns"))
		}
	}
}
