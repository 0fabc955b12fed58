package registrytest

import (
	"cmp"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// grant is what a token is good for.
type grant struct {
	scopes  []string
	expires time.Time
}

// TokenLife is how long tokens are good for.
const TokenLife = 5 * time.Minute

// authorized lets a request pass or answers it with a challenge.
func (r *Registry) authorized(w http.ResponseWriter, q *http.Request, repo string) bool {
	header := q.Header.Get("Authorization")
	switch r.Opts.Auth {
	case NoAuth:
		return true
	case Basic:
		if user, password, ok := q.BasicAuth(); ok && r.isUser(user, password) {
			return true
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test registry"`)
	case Token:
		action := "pull"
		if q.Method != http.MethodGet && q.Method != http.MethodHead {
			action = "push"
		}
		value, _ := strings.CutPrefix(header, "Bearer ")
		r.mu.Lock()
		g, ok := r.tokens[value]
		r.mu.Unlock()
		if ok && time.Now().Before(g.expires) && (repo == "" || covers(g.scopes, repo, action)) {
			return true
		}
		scope := ""
		if repo != "" {
			scope = fmt.Sprintf(`,scope="repository:%s:%s"`, repo, map[string]string{"pull": "pull", "push": "pull,push"}[action])
		}
		if ok {
			scope += `,error="insufficient_scope"`
		} else if value != "" {
			scope += `,error="invalid_token"`
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s",service="test"%s`, r.realm(q), scope))
	}
	fail(w, http.StatusUnauthorized, "UNAUTHORIZED")
	return false
}

func (r *Registry) realm(q *http.Request) string {
	scheme := "http"
	if q.TLS != nil {
		scheme = "https"
	}
	return cmp.Or(r.Opts.Realm, scheme+"://"+q.Host+"/token")
}

func (r *Registry) isUser(name, password string) bool {
	want, ok := r.Opts.Users[name]
	return ok && want == password
}

func covers(scopes []string, repo, action string) bool {
	return slices.ContainsFunc(scopes, func(s string) bool {
		actions, ok := strings.CutPrefix(s, "repository:"+repo+":")
		return ok && slices.Contains(strings.Split(actions, ","), action)
	})
}

// ExpireTokens makes every token invalid that was given out.
func (r *Registry) ExpireTokens() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.tokens)
}

// serveToken is the token server: POST with a form, GET with Basic.
func (r *Registry) serveToken(w http.ResponseWriter, q *http.Request) {
	if q.Method == http.MethodPost && r.Opts.NoPost {
		fail(w, http.StatusMethodNotAllowed, "UNSUPPORTED")
		return
	}
	_ = q.ParseForm()
	user, password, named := q.BasicAuth()
	if q.Method == http.MethodPost {
		user, password, named = q.PostForm.Get("username"), q.PostForm.Get("password"), true
	}
	known := named && r.isUser(user, password) ||
		r.Opts.Refresh != "" && q.PostForm.Get("grant_type") == "refresh_token" && q.PostForm.Get("refresh_token") == r.Opts.Refresh
	if named && !known || !named && !r.Opts.Anonymous {
		fail(w, http.StatusUnauthorized, "UNAUTHORIZED")
		return
	}
	var scopes []string
	for _, s := range q.Form["scope"] {
		for _, one := range strings.Fields(s) {
			if !known { // nobody in particular may only read
				one = strings.TrimSuffix(one, ",push")
			}
			scopes = append(scopes, one)
		}
	}
	value := "token-" + rand.Text()
	r.mu.Lock()
	r.tokens[value] = grant{scopes, time.Now().Add(TokenLife)}
	r.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"token": value, "expires_in": int(TokenLife.Seconds())})
}
