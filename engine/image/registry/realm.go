package registry

import (
	"net/url"
	"strings"

	"github.com/berthd/berth/base/errs"
)

// tokenServer is a realm that passed the rules.
type tokenServer struct {
	url       *url.URL
	plain     bool // http: a credential may go only where the registry's own goes
	sameHost  bool // on the registry's own host, port aside
	mayBeSent bool // a credential may travel there
}

// checkRealm decides whether a token server that a registry named may be asked,
// and whether it may see a credential.
//
//	registry \ realm   https                       http
//	https              asked, sees the credential  refused (both loopback: as below)
//	http, loopback     asked, sees the credential  only loopback
//	http, other        asked, sees the credential  asked; the credential only on the registry's own host
//
// Where the realm's address may be is the guard's business.
func checkRealm(e *endpoint, scheme, realm string) (tokenServer, error) {
	refuse := func(why string) (tokenServer, error) {
		return tokenServer{}, errs.New(errs.PermissionDenied, "the registry names the token server %q, which is refused: %s", redactText(clean(realm, 200)), why)
	}
	if !validHeaderValue(realm) || len(realm) > 4096 {
		return refuse("it is not a URL")
	}
	u, err := url.Parse(realm)
	if err != nil || u.Opaque != "" || u.Hostname() == "" || strings.Contains(u.Host, "%") {
		return refuse("it is not a complete URL")
	}
	if u.User != nil || u.Fragment != "" {
		return refuse("a URL here has no user and no fragment")
	}
	u.Scheme = strings.ToLower(u.Scheme)
	s := tokenServer{url: u, sameHost: strings.EqualFold(hostname(u.Host), hostname(e.host))}
	switch u.Scheme {
	case "https":
		s.mayBeSent = true
		return s, nil
	case "http":
		s.plain = true
	default:
		return refuse("neither http nor https")
	}
	if scheme == "https" && !(isLoopback(e.host) && isLoopback(u.Host)) {
		return refuse("plain http, although the registry is asked over https")
	}
	if isLoopback(e.host) {
		if !isLoopback(u.Host) {
			return refuse("plain http to another machine")
		}
		s.mayBeSent = true
		return s, nil
	}
	s.mayBeSent = s.sameHost
	return s, nil
}
