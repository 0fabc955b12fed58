package registry

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/berthd/berth/base/keylock"
)

// maxRemembered bounds each table of the authorizer; a full one is emptied of
// what expired, then of everything.
const maxRemembered = 2048

// authorizer remembers how hosts want to be authenticated to, and their tokens.
// Everything is bound to an origin: scheme, host and port.
//
//	401 + challenge ──► Basic:  credential of the host ──────────────► request again
//	                └─► Bearer: checkRealm ─► token (cached) ────────► request again
//	401 again, token was cached: drop it, fetch a new one, once
type authorizer struct {
	locks keylock.Map // one fetch per token at a time

	mu     sync.Mutex
	needs  map[needKey]need
	tokens map[tokenKey]token
	noPost map[string]bool // realms that do not know the POST form
}

// needKey is one sort of request to one origin.
type needKey struct{ origin, scopes string }

// need is what that request took the last time.
type need struct {
	scheme  string // "basic" or "bearer"
	realm   string
	service string
	scopes  string // merged with what the challenge asked for
}

// tokenKey names a token; credential is a hash.
type tokenKey struct{ origin, realm, service, scopes, credential string }

type token struct {
	value   string
	refresh time.Time // from then on a new one is fetched
}

func newAuthorizer() *authorizer {
	return &authorizer{needs: map[needKey]need{}, tokens: map[tokenKey]token{}, noPost: map[string]bool{}}
}

// authorization is one Authorization value and what to forget if it is refused.
type authorization struct {
	value  string
	token  tokenKey
	cached bool
}

// authorize gives the Authorization value for a request, "" if the host has not
// asked for one.
func (r *Remote) authorize(ctx context.Context, e *endpoint, scheme string, scopes []string) (authorization, error) {
	a := r.c.auth
	key := needKey{originOf(scheme, e.host), strings.Join(mergeScopes(scopes), " ")}
	a.mu.Lock()
	n, known := a.needs[key]
	a.mu.Unlock()
	if !known {
		return authorization{}, nil
	}
	cred, err := r.credential(ctx, e)
	if err != nil {
		return authorization{}, err
	}
	switch {
	case cred.Header != "":
		return authorization{value: cred.Header}, nil
	case cred.RegistryToken != "":
		return authorization{value: "Bearer " + cred.RegistryToken}, nil
	case n.scheme == "basic":
		if cred.Username == "" {
			return authorization{}, nil
		}
		return authorization{value: "Basic " + basicValue(cred)}, nil
	}
	tk := tokenKey{key.origin, n.realm, n.service, n.scopes, idOf(cred)}
	t, cached, err := r.token(ctx, e, scheme, tk, cred)
	if err != nil {
		return authorization{}, err
	}
	return authorization{value: "Bearer " + t.value, token: tk, cached: cached}, nil
}

// token returns the cached token, or fetches one; calls for the same one wait
// for the first.
func (r *Remote) token(ctx context.Context, e *endpoint, scheme string, key tokenKey, cred Credential) (t token, cached bool, err error) {
	a := r.c.auth
	unlock, err := a.locks.Lock(ctx, strings.Join([]string{key.origin, key.realm, key.service, key.scopes, key.credential}, "\x00"))
	if err != nil {
		return token{}, false, err
	}
	defer unlock()
	a.mu.Lock()
	t, ok := a.tokens[key]
	a.mu.Unlock()
	if ok && time.Now().Before(t.refresh) {
		return t, true, nil
	}
	t, err = r.fetchToken(ctx, e, scheme, key, cred)
	if err != nil {
		return token{}, false, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.tokens) >= maxRemembered {
		now := time.Now()
		for k, old := range a.tokens {
			if now.After(old.refresh) {
				delete(a.tokens, k)
			}
		}
		if len(a.tokens) >= maxRemembered {
			clear(a.tokens)
		}
	}
	a.tokens[key] = t
	return t, false, nil
}

// challenged learns from a 401 and says whether another try can do better.
// used is the authorization that the refused request carried.
func (r *Remote) challenged(ctx context.Context, e *endpoint, scheme string, scopes []string, used authorization, resp *http.Response) (bool, error) {
	a := r.c.auth
	key := needKey{originOf(scheme, e.host), strings.Join(mergeScopes(scopes), " ")}
	if used.value != "" && used.token != (tokenKey{}) {
		a.mu.Lock()
		delete(a.tokens, used.token)
		a.mu.Unlock()
	}
	for _, c := range parseChallenges(resp.Header.Values("Www-Authenticate")) {
		n := need{scheme: c.scheme}
		switch c.scheme {
		case "basic":
			cred, err := r.credential(ctx, e)
			if err != nil {
				return false, err
			}
			if cred.Username == "" && cred.Header == "" && cred.RegistryToken == "" {
				continue
			}
		case "bearer":
			if _, err := checkRealm(e, scheme, c.params["realm"]); err != nil {
				return false, err
			}
			all := append(strings.Fields(c.params["scope"]), scopes...)
			if e.path != "/v2" && c.params["scope"] != "" {
				// Below another API root the host's own name of the repository differs.
				all = strings.Fields(c.params["scope"])
			}
			n.realm, n.service, n.scopes = c.params["realm"], c.params["service"], strings.Join(mergeScopes(all), " ")
		default:
			continue
		}
		// What was asked for and freshly given was refused: the same again would be, too.
		if old := a.remember(key, n); old == n && used.value != "" && !used.cached {
			continue
		}
		return true, nil
	}
	return false, nil
}

// remember stores what a sort of request takes and returns what was known before.
func (a *authorizer) remember(k needKey, n need) need {
	a.mu.Lock()
	defer a.mu.Unlock()
	old := a.needs[k]
	if len(a.needs) >= maxRemembered {
		clear(a.needs)
	}
	a.needs[k] = n
	return old
}
