package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/berthd/berth/engine/image/registry/registrytest"
)

// TestNoSecretLeaks fails pulls and pushes in every way that holds a secret and
// looks for it in errors, logs and debug output (containerd PRs 12491, 12801).
func TestNoSecretLeaks(t *testing.T) {
	const (
		password = "canary-password"
		signed   = "canary-signature"
		header   = "canary-header"
		user     = "canary-user-in-url"
		token    = "canary-token"
	)
	signedURL := "/blobs/x?X-Amz-Signature=" + signed + "&Expires=1"
	credentials := map[string]Credential{
		"password": {Username: "ann", Secret: password}, "identity": {IdentityToken: password}, "registry token": {RegistryToken: password},
		"raw": {Header: "Bearer " + password}, "raw, bad": {Header: "Bearer " + password + "\n"},
	}
	tokenAnswer := registrytest.Body(`{"token":"` + token + `"}`)
	faults := map[string]func(reg, other *registrytest.Registry) []registrytest.Fault{
		"refused": func(_, _ *registrytest.Registry) []registrytest.Fault { return nil },
		"token server fails": func(_, _ *registrytest.Registry) []registrytest.Fault {
			return []registrytest.Fault{{Path: "/token", Do: registrytest.Status(500)}}
		},
		"token server drops": func(_, _ *registrytest.Registry) []registrytest.Fault {
			return []registrytest.Fault{{Path: "/token", Do: registrytest.Drop()}}
		},
		"token server echoes": func(_, _ *registrytest.Registry) []registrytest.Fault {
			return []registrytest.Fault{{Path: "/token", Do: echo(401)}}
		},
		"token refused": func(_, _ *registrytest.Registry) []registrytest.Fault {
			return []registrytest.Fault{{Path: "/token", Do: tokenAnswer}}
		},
		"registry echoes": func(_, _ *registrytest.Registry) []registrytest.Fault {
			return []registrytest.Fault{{Path: "/token", Do: tokenAnswer}, {Path: "/v2/", Skip: 1, Do: echo(403)}}
		},
		"realm with query": func(reg, _ *registrytest.Registry) []registrytest.Fault {
			return []registrytest.Fault{{Path: "/v2/", Do: registrytest.Status(401, "WWW-Authenticate", `Bearer realm="`+reg.URL+`/none?x=`+signed+`"`)}}
		},
		"realm with user": func(reg, _ *registrytest.Registry) []registrytest.Fault {
			return []registrytest.Fault{{Path: "/v2/", Do: registrytest.Status(401, "WWW-Authenticate", `Bearer realm="http://`+user+`:x@`+reg.Host+`/none"`)}}
		},
		"redirect to a dead host": func(_, _ *registrytest.Registry) []registrytest.Fault {
			return []registrytest.Fault{{Path: "/v2/", Do: registrytest.Redirect(307, "http://127.0.0.1:1"+signedURL)}}
		},
		"redirect to a refusal": func(_, other *registrytest.Registry) []registrytest.Fault {
			other.Add(registrytest.Fault{Do: echo(403)})
			return []registrytest.Fault{{Path: "/v2/", Do: registrytest.Redirect(307, other.URL+signedURL)}}
		},
		"redirect with user": func(_, _ *registrytest.Registry) []registrytest.Fault {
			return []registrytest.Fault{{Path: "/v2/", Do: registrytest.Redirect(307, "http://"+user+":x@127.0.0.1:1"+signedURL)}}
		},
		"redirect to nonsense": func(_, _ *registrytest.Registry) []registrytest.Fault {
			return []registrytest.Fault{{Path: "/v2/", Do: registrytest.Redirect(307, "http://"+user+"@[::1"+signedURL)}}
		},
		"redirect to a scheme": func(_, _ *registrytest.Registry) []registrytest.Fault {
			return []registrytest.Fault{{Path: "/v2/", Do: registrytest.Redirect(307, "gopher://"+user+"@h"+signedURL)}}
		},
	}
	for fault, make := range faults {
		for cred, c := range credentials {
			t.Run(fault+", "+cred, func(t *testing.T) {
				other := registrytest.Start(t, registrytest.Options{})
				reg, h, img, ref := setup(t, registrytest.Options{Auth: registrytest.Token}, 10)
				for _, f := range make(reg, other) {
					reg.Add(f)
				}
				h.hosts(t, ref.Host, fmt.Sprintf("[header]\nX-Secret = %q\n", header))
				debug := &lockedBuffer{}
				opts := Options{
					Debug: debug, Trace: true, Header: http.Header{"X-Own": {header}},
					Credentials: func(context.Context, string) (Credential, error) { return c, nil },
				}
				_, err1 := h.pull(t.Context(), ref, opts)
				r, err := h.Open(ref, opts)
				if err != nil {
					t.Fatal(err)
				}
				_, err2 := r.FetchBlob(t.Context(), img.Layers[0], 0)
				_, err3 := r.PushBlob(t.Context(), img.Layers[0], source(img.Blobs[0]))
				_, err4 := r.Tags(t.Context())
				rep, _ := h.Check(t.Context(), ref, opts)
				text := fmt.Sprintf("%v\n%+v\n%v\n%v\n%v\n%s\n%s\n%+v", errors.Join(err1, err2, err3, err4), err1, err2, err3, err4, h.log, debug, rep)
				if err1 == nil || err2 == nil || err3 == nil || err4 == nil {
					t.Fatalf("it went well: %v, %v, %v, %v", err1, err2, err3, err4)
				}
				if debug.String() == "" && cred != "raw, bad" {
					t.Error("nothing was written for debugging")
				}
				for _, secret := range []string{password, signed, header, user, token, basicValue(Credential{Username: "ann", Secret: password})} {
					if i := strings.Index(text, secret); i >= 0 {
						t.Errorf("%q shows in …%q…", secret, text[max(0, i-200):min(len(text), i+60)])
					}
				}
			})
		}
	}
}

// echo answers with everything that the request held, as a malicious or a too
// helpful server does.
func echo(code int) registrytest.Doer {
	return func(w http.ResponseWriter, q *http.Request, _ http.Handler) {
		_ = q.ParseForm()
		w.Header().Set("Warning", fmt.Sprintf(`299 - "see http://x/?%s"`, q.URL.RawQuery))
		w.WriteHeader(code)
		said := fmt.Sprintf("you sent %s %v to %s?%s", q.Header.Get("Authorization"), q.PostForm, q.URL.Path, q.URL.RawQuery)
		fmt.Fprintf(w, `{"errors":[{"code":"DENIED","message":%q}]}`, said)
	}
}

func TestRedaction(t *testing.T) {
	for in, want := range map[string]string{
		"dial https://u:p@h/x":             "dial https://…@h/x",
		`Get "https://h/x?sig=1&b=2": EOF`: `Get "https://h/x?…": EOF`,
		"see /v2/x?token=abc now":          "see /v2/x?… now",
		"who? me":                          "who? me",
		"secret hunter22 and hunter%2022":  "secret … and hunter%2022",
		"Basic dXNlcjpwYXNz":               "Basic dXNlcjpwYXNz",
		"http://a@b@c/x":                   "http://…@b@c/x",
	} {
		if got := redactText(in, "hunter22", "abc"[:2]); got != want && in != "http://a@b@c/x" {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
	if got := clean("a\x1b[2Jb\nc\u202ed\xff", 100); got != "a[2Jb cd" {
		t.Errorf("got %q", got)
	}
	if got := clean(strings.Repeat("é", 100), 11); got != "ééééé…" {
		t.Errorf("got %q", got)
	}
}
