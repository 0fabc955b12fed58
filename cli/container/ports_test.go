package container

import (
	"errors"
	"strings"
	"testing"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	"github.com/containerd/containerd/api/types/task"

	"github.com/berthd/berth/cli/client"
	"github.com/berthd/berth/cli/session"
	"time"
)

func TestParsePort(t *testing.T) {
	for s, want := range map[string]string{
		"8080:80": "8080:80/tcp", "127.0.0.1:53:5353/udp": "127.0.0.1:53:5353/udp", "[::1]:80:80": "[::1]:80:80/tcp",
		"8000-8001:80-81/sctp": "8000:80/sctp,8001:81/sctp",
	} {
		got, err := parsePort(s)
		if err != nil || formatPorts(got) != want {
			t.Errorf("parsePort(%q) = %s, %v; want %s", s, formatPorts(got), err, want)
		}
	}
	for _, s := range []string{"80", "127.0.0.1::80"} {
		if got, err := parsePort(s); err != nil || len(got) != 1 || got[0].GetHostPort() < 1024 || got[0].GetContainerPort() != 80 {
			t.Errorf("parsePort(%q) = %v, %v; want a free host port", s, got, err)
		}
	}
	for s, want := range map[string]string{"x:80": "no port", "0:80": "no port", "80:70000": "no port", "1.2.3:80:80": "no address", "80/icmp": "protocol", "1-2:80": "length", "2-1:80-81": "ends before"} {
		if _, err := parsePort(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("parsePort(%q): %v, want %q", s, err, want)
		}
	}
	if got := portsText("8080:80/tcp,127.0.0.1:53:53/udp"); got != "0.0.0.0:8080->80/tcp, 127.0.0.1:53->53/udp" {
		t.Error(got)
	}
}

func TestExplainStart(t *testing.T) {
	for text, want := range map[string]int{
		`unable to start container process: exec: "x": executable file not found in $PATH`: session.ExitNotFound,
		`exec: "/x": stat /x: no such file or directory`:                                   session.ExitNotFound,
		`exec: "/etc": is a directory`:                                                     session.ExitNoRun,
		`exec /x: exec format error`:                                                       session.ExitNoRun,
		`exec: "/x": permission denied`:                                                    session.ExitNoRun,
		`mount /a: no such file or directory`:                                              session.ExitBerth,
		`the shim is gone`:                                                                 session.ExitBerth,
	} {
		var code session.ExitCode
		if err := explainStart(errorText(text)); !asCode(err, &code) || code.Code != want {
			t.Errorf("%q: %v, want %d", text, err, want)
		}
	}
}

type errorText string

func (e errorText) Error() string { return string(e) }

func asCode(err error, to *session.ExitCode) bool { return errors.As(err, to) }

func TestSignals(t *testing.T) {
	for s, want := range map[string]int{"TERM": 15, "sigkill": 9, "SIGHUP": 1, "10": 10, "RTMIN+3": 37, "SIGRTMAX-1": 63, "rtmin": 34} {
		if got, err := ParseSignal(s); err != nil || int(got) != want {
			t.Errorf("ParseSignal(%q) = %d, %v; want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "0", "65", "NOPE", "RTMIN+99"} {
		if got, err := ParseSignal(s); err == nil {
			t.Errorf("ParseSignal(%q) = %d, want an error", s, got)
		}
	}
}

func TestFilters(t *testing.T) {
	k := &containersapi.Container{ID: "abc", Image: "docker.io/library/busybox:latest", Labels: map[string]string{client.LabelName: "web", "app": "x"}}
	row := describeContainer(k, &task.Process{Status: task.Status_STOPPED, ExitStatus: 3}, time.Now(), false)
	for filter, want := range map[string]bool{
		"id=ab": true, "id=bc": false, "name=we": true, "name=no": false, "label=app": true, "label=app=x": true, "label=app=y": false,
		"status=exited": true, "status=running": false, "exited=3": true, "exited=4": false, "ancestor=busybox": true, "ancestor=alpine": false,
	} {
		match, _, err := parseFilters([]string{filter})
		if err != nil || match(k, row) != want {
			t.Errorf("%s: %v, %v; want %v", filter, match(k, row), err, want)
		}
	}
	for _, bad := range []string{"status=dead", "exited=x", "colour=red"} {
		if _, _, err := parseFilters([]string{bad}); err == nil {
			t.Errorf("%s: no error", bad)
		}
	}
}
