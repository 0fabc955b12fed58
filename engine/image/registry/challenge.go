package registry

import (
	"slices"
	"strings"
)

const (
	maxChallenges    = 16   // in one answer
	maxChallengeText = 8192 // bytes of one header
)

// challenge is one way to authenticate that a host offers (RFC 9110, 11.6.1).
type challenge struct {
	scheme string // lower case: "bearer", "basic"
	params map[string]string
}

// parseChallenges reads WWW-Authenticate headers. What does not follow the
// grammar ends the header it is in; it never fails.
func parseChallenges(headers []string) []challenge {
	var out []challenge
	for _, h := range headers {
		if len(h) > maxChallengeText {
			continue
		}
		s := scanner{rest: h}
		for len(out) < maxChallenges {
			s.skip(" \t,")
			scheme := s.token()
			if scheme == "" {
				break
			}
			out = append(out, challenge{scheme: strings.ToLower(scheme), params: s.params()})
		}
	}
	return out
}

// scanner walks one header value.
type scanner struct{ rest string }

func (s *scanner) skip(set string) { s.rest = strings.TrimLeft(s.rest, set) }

func isTokenChar(b byte) bool {
	return b > ' ' && b < 0x7f && !strings.ContainsRune(`()<>@,;:\"/[]?={}`, rune(b))
}

func (s *scanner) token() string {
	i := 0
	for i < len(s.rest) && isTokenChar(s.rest[i]) {
		i++
	}
	t := s.rest[:i]
	s.rest = s.rest[i:]
	return t
}

// params reads name=value pairs up to the next scheme or the end.
func (s *scanner) params() map[string]string {
	out := map[string]string{}
	for {
		before := s.rest
		s.skip(" \t,")
		name := s.token()
		s.skip(" \t")
		if name == "" || !strings.HasPrefix(s.rest, "=") {
			// The next challenge's scheme, or no grammar at all. A quote here would
			// otherwise be read as a scheme for ever.
			s.rest = before
			if name == "" {
				s.rest = ""
			}
			return out
		}
		s.rest = s.rest[1:]
		s.skip(" \t")
		value, ok := s.value()
		if !ok {
			s.rest = ""
			return out
		}
		name = strings.ToLower(name)
		if _, twice := out[name]; !twice { // the first one counts, for every reader the same
			out[name] = value
		}
	}
}

func (s *scanner) value() (string, bool) {
	if !strings.HasPrefix(s.rest, `"`) {
		v := s.token()
		// Realms are sometimes sent without quotes: take what cannot end the value.
		for i := 0; i <= len(s.rest); i++ {
			if i == len(s.rest) || strings.IndexByte(" \t,\"", s.rest[i]) >= 0 {
				v += s.rest[:i]
				s.rest = s.rest[i:]
				return v, v != ""
			}
		}
	}
	var b strings.Builder
	for i := 1; i < len(s.rest); i++ {
		switch c := s.rest[i]; {
		case c == '"':
			s.rest = s.rest[i+1:]
			return b.String(), true
		case c == '\\' && i+1 < len(s.rest):
			i++
			b.WriteByte(s.rest[i])
		default:
			b.WriteByte(c)
		}
	}
	return "", false // no closing quote
}

// repositoryScope asks for actions on one repository.
func repositoryScope(repo, actions string) string { return "repository:" + repo + ":" + actions }

// mergeScopes joins scopes of the same resource, so that one token serves all;
// the result is in a fixed order.
func mergeScopes(scopes []string) []string {
	actions := map[string][]string{}
	for _, s := range scopes {
		i := strings.LastIndexByte(s, ':')
		if i <= 0 || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
			continue
		}
		for _, a := range strings.Split(s[i+1:], ",") {
			if a != "" && !slices.Contains(actions[s[:i]], a) {
				actions[s[:i]] = append(actions[s[:i]], a)
			}
		}
	}
	var out []string
	for resource, list := range actions {
		slices.Sort(list)
		out = append(out, resource+":"+strings.Join(list, ","))
	}
	slices.Sort(out)
	return out
}
