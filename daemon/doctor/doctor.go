// Package doctor examines this machine and the daemon on it: what berth needs of the
// kernel and of other programs, what the configuration says, what the daemon set
// aside. It changes nothing, and needs no daemon that runs. It owns no state.
package doctor

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/berthd/berth/daemon/config"
)

// Grade is how bad a finding is.
type Grade string

// The grades. A failure is something that most containers cannot do without.
const (
	OK   Grade = "ok"
	Warn Grade = "warn"
	Fail Grade = "fail"
)

// Finding is one line of the report.
type Finding struct {
	Grade  Grade  `json:"grade"`
	About  string `json:"about"`
	Detail string `json:"detail"`
	Do     string `json:"do,omitempty"` // what to do about it
}

// Config is what to examine.
type Config struct {
	Config config.Config // as far as it could be read
	Bad    error         // why it could not
	Log    *slog.Logger
}

// visit is one examination.
type visit struct {
	Config
	found []Finding
}

func (v *visit) ok(about, format string, args ...any) {
	v.found = append(v.found, Finding{OK, about, fmt.Sprintf(format, args...), ""})
}

func (v *visit) warn(about, do, format string, args ...any) {
	v.found = append(v.found, Finding{Warn, about, fmt.Sprintf(format, args...), do})
}

func (v *visit) fail(about, do, format string, args ...any) {
	v.found = append(v.found, Finding{Fail, about, fmt.Sprintf(format, args...), do})
}

// Examine looks at everything. It takes some seconds at most: whatever is asked has a
// limit of its own.
func Examine(ctx context.Context, c Config) []Finding {
	v := &visit{Config: c}
	v.configuration()
	v.kernel()
	v.limits()
	v.disks()
	v.programs(ctx)
	v.network(ctx)
	v.daemon(ctx)
	return v.found
}

func (v *visit) configuration() {
	const about = "configuration"
	if v.Bad != nil {
		v.fail(about, "correct it: the daemon does not start with it", "%v", v.Bad)
	}
	for _, n := range v.Config.Config.Notes {
		v.warn(about, "", "%s", n)
	}
	for _, d := range v.Config.Config.Deprecations {
		v.warn(about, "", "%s", d.Message)
	}
	if v.Bad == nil && len(v.Config.Config.Notes)+len(v.Config.Config.Deprecations) == 0 {
		files := strings.Join(v.Config.Config.Files, ", ")
		if files == "" {
			files = "no file, all defaults"
		}
		v.ok(about, "%s", files)
	}
}

// Write prints a report for people; it returns the worst grade in it.
func Write(w io.Writer, all []Finding, quiet bool) (worst Grade, err error) {
	worst = OK
	for _, f := range all {
		if f.Grade == Fail || f.Grade == Warn && worst == OK {
			worst = f.Grade
		}
		if quiet && f.Grade == OK {
			continue
		}
		text := fmt.Sprintf("%-4s  %s: %s\n", f.Grade, f.About, strings.ReplaceAll(f.Detail, "\n", "\n        "))
		if f.Do != "" {
			text += "        " + f.Do + "\n"
		}
		if _, err := io.WriteString(w, text); err != nil {
			return worst, err
		}
	}
	return worst, nil
}
