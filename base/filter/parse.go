package filter

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"
)

type parser struct {
	in  string
	pos int
}

func parseOne(s string) ([]selector, error) {
	p := &parser{in: s}
	if s == "" {
		return nil, nil
	}
	var out []selector
	for {
		sel, err := p.selector()
		if err != nil {
			return nil, fmt.Errorf("at character %d: %w", p.pos+1, err)
		}
		out = append(out, sel)
		p.blanks()
		if p.pos == len(p.in) {
			return out, nil
		}
		if p.in[p.pos] != ',' {
			return nil, fmt.Errorf("at character %d: expected ',' or the end", p.pos+1)
		}
		p.pos++
	}
}

// blanks skips white space, which may stand between selectors.
func (p *parser) blanks() {
	for p.pos < len(p.in) && strings.ContainsRune(" \t\n", rune(p.in[p.pos])) {
		p.pos++
	}
}

func (p *parser) selector() (selector, error) {
	var s selector
	p.blanks()
	for {
		part, err := p.part()
		if err != nil {
			return s, err
		}
		s.path = append(s.path, part)
		if p.pos < len(p.in) && p.in[p.pos] == '.' {
			p.pos++
			continue
		}
		break
	}
	p.blanks()
	rest := p.in[p.pos:]
	if rest == "" || rest[0] == ',' {
		return s, nil
	}
	for _, op := range []string{"==", "!=", "~="} {
		if strings.HasPrefix(rest, op) {
			s.op = op
			p.pos += 2
			p.blanks()
			return p.value(s)
		}
	}
	return s, fmt.Errorf("expected ==, != or ~=")
}

func (p *parser) part() (string, error) {
	if p.pos < len(p.in) && p.in[p.pos] == '"' {
		return p.quoted('"')
	}
	start := p.pos
	for p.pos < len(p.in) && isField(p.in[p.pos]) {
		p.pos++
	}
	if p.pos == start {
		return "", fmt.Errorf("expected a field name")
	}
	return p.in[start:p.pos], nil
}

func isField(c byte) bool {
	return c == '_' || c == '-' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

func (p *parser) value(s selector) (selector, error) {
	var err error
	switch {
	case p.pos < len(p.in) && (p.in[p.pos] == '"' || s.op == "~=" && (p.in[p.pos] == '/' || p.in[p.pos] == '|')):
		s.value, err = p.quoted(p.in[p.pos])
	default:
		start := p.pos
		for p.pos < len(p.in) && p.in[p.pos] != ',' && p.in[p.pos] != ' ' && p.in[p.pos] != '"' {
			p.pos++
		}
		s.value = p.in[start:p.pos]
		if s.value == "" {
			err = fmt.Errorf("expected a value")
		}
	}
	if err == nil && s.op == "~=" {
		s.re, err = regexp.Compile(s.value)
	}
	return s, err
}

// quoted reads a value between two quote characters; a backslash escapes as in a
// Go string, and the quote character itself.
func (p *parser) quoted(quote byte) (string, error) {
	p.pos++
	var b strings.Builder
	for p.pos < len(p.in) {
		c := p.in[p.pos]
		switch {
		case c == quote:
			p.pos++
			return b.String(), nil
		case c == '\\' && quote == '"':
			r, multibyte, tail, err := strconv.UnquoteChar(p.in[p.pos:], quote)
			if err != nil {
				return "", fmt.Errorf("bad escape")
			}
			p.pos = len(p.in) - len(tail)
			if r < utf8.RuneSelf || !multibyte {
				b.WriteByte(byte(r))
			} else {
				b.WriteRune(r)
			}
		case c == '\\' && p.pos+1 < len(p.in) && p.in[p.pos+1] == quote:
			b.WriteByte(quote)
			p.pos += 2
		default:
			b.WriteByte(c)
			p.pos++
		}
	}
	return "", fmt.Errorf("no closing %c", quote)
}
