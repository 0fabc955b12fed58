package script

import (
	"regexp"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// showTime is how long shows waits for what must come by itself.
const showTime = 15 * time.Second

// shows is `shows REGEXP PROGRAM ARG…`: the program is run again and again until it
// succeeds and its output matches; with ! until it does not match.
func shows(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: [!] shows REGEXP PROGRAM [ARG ...]")
	}
	re, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	for end := time.Now().Add(showTime); ; time.Sleep(50 * time.Millisecond) {
		err := ts.Exec(args[1], args[2:]...)
		if err == nil && re.MatchString(ts.ReadFile("stdout")) != neg {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("%s: within %s its output did not come to match %q (or did not cease to): %v", args[1], showTime, args[0], err)
		}
	}
}

// take is `take VAR REGEXP`: the first group of the match in the last output.
func take(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: take VAR REGEXP")
	}
	re, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	m := re.FindStringSubmatch(ts.ReadFile("stdout"))
	if len(m) < 2 {
		ts.Fatalf("no match for %q in the output", args[1])
	}
	ts.Setenv(args[0], m[1])
}

// fails is `fails REGEXP PROGRAM ARG…`: the program must end with an error, and say
// on stderr or stdout what matches.
func fails(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: fails REGEXP PROGRAM [ARG ...]")
	}
	re, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	if ts.Exec(args[1], args[2:]...) == nil {
		ts.Fatalf("%s succeeded", strings.Join(args[1:], " "))
	}
	if out := ts.ReadFile("stderr") + ts.ReadFile("stdout"); !re.MatchString(out) {
		ts.Fatalf("its message does not match %q", args[0])
	}
}
