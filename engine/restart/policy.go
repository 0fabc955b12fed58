package restart

import (
	"strconv"
	"strings"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/label"
)

// Policies are the names that a policy may have.
var Policies = []string{"no", "always", "on-failure", "unless-stopped"}

// Policy says when a container that ended is started again.
type Policy struct {
	Name string
	Most int // restarts of on-failure; 0: any number
}

// ParsePolicy reads "always" or "on-failure:3". Nothing is "always": a container whose
// status label asks for running is kept running.
func ParsePolicy(s string) (Policy, error) {
	name, most, counted := strings.Cut(s, ":")
	switch name {
	case "":
		name = "always"
	case "no", "always", "unless-stopped", "on-failure":
	default:
		return Policy{}, errs.New(errs.InvalidArgument, "restart policy %q: use no, always, unless-stopped or on-failure[:N]", s)
	}
	if !counted {
		return Policy{Name: name}, nil
	}
	n, err := strconv.Atoi(most)
	if name != "on-failure" || err != nil || n < 0 {
		return Policy{}, errs.New(errs.InvalidArgument, "restart policy %q: a number of restarts goes with on-failure only, as on-failure:3", s)
	}
	return Policy{name, n}, nil
}

// Again decides by a container's labels whether it is to be started after its process
// ended with a status.
func Again(labels map[string]string, status uint32) (bool, error) {
	if stopped, err := strconv.ParseBool(labels[label.RestartStopped]); err == nil && stopped {
		return false, nil
	}
	p, err := ParsePolicy(labels[label.RestartPolicy])
	if err != nil {
		return false, err
	}
	switch p.Name {
	case "always", "unless-stopped":
		return true, nil
	case "on-failure":
		return status != 0 && (p.Most == 0 || count(labels) < p.Most), nil
	}
	return false, nil
}

// count is how often the container was started again; what is no number counts as 0.
func count(labels map[string]string) int {
	n, err := strconv.Atoi(labels[label.RestartCount])
	if err != nil {
		return 0
	}
	return n
}
