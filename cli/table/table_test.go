package table

import (
	"strings"
	"testing"
	"time"
)

type row struct {
	ID, Names string
	Labels    map[string]string
}

func TestWrite(t *testing.T) {
	rows := []row{{"abc", "web", map[string]string{"a": "b<"}}, {"defghijklmnop", "evil\x1b[31m", nil}}
	columns := Columns("CONTAINER ID=ID", "NAMES")
	for _, c := range []struct{ format, want string }{
		{"", "CONTAINER ID    NAMES\nabc             web\ndefghijklmnop   evil?[31m\n"},
		{"json", `{"ID":"abc","Names":"web","Labels":{"a":"b<"}}` + "\n" + `{"ID":"defghijklmnop","Names":"evil\u001b[31m","Labels":null}` + "\n"},
		{`{{.Names}}:{{json .Labels}}`, `web:{"a":"b<"}` + "\nevil\x1b[31m:null\n"},
		{`table {{.ID}}\t{{upper .Names}}`, "CONTAINER ID    NAMES\nabc             WEB\ndefghijklmnop   EVIL\x1b[31M\n"},
	} {
		var b strings.Builder
		if err := Write(&b, rows, c.format, columns); err != nil {
			t.Errorf("%q: %v", c.format, err)
		}
		if b.String() != c.want {
			t.Errorf("%q:\n%q, want\n%q", c.format, b.String(), c.want)
		}
	}
	for _, bad := range []string{"{{.Nothing}}", "{{"} {
		if err := Write(new(strings.Builder), rows, bad, columns); err == nil || !strings.Contains(err.Error(), "--format") {
			t.Errorf("%q: %v, want an error that names --format", bad, err)
		}
	}
}

func TestHuman(t *testing.T) {
	for n, want := range map[int64]string{0: "0B", 999: "999B", 4330000: "4.33MB", 1_000_000_000: "1GB", 123456: "123kB"} {
		if got := Size(n); got != want {
			t.Errorf("Size(%d) = %s, want %s", n, got, want)
		}
	}
	if got := BinarySize(1023 << 20); got != "1023MiB" {
		t.Errorf("BinarySize = %s", got)
	}
	for d, want := range map[time.Duration]string{
		time.Second: "1 second", 61 * time.Second: "61 seconds", 3 * time.Minute: "3 minutes", 26 * time.Hour: "26 hours",
		3 * 24 * time.Hour: "3 days", 20 * 24 * time.Hour: "2 weeks", 800 * 24 * time.Hour: "2 years", -time.Hour: "0 seconds",
	} {
		if got := Age(d); got != want {
			t.Errorf("Age(%s) = %s, want %s", d, got, want)
		}
	}
}
