package cli

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/cli/session"
)

var update = flag.Bool("update", false, "write the golden files anew")

// every walks over all commands.
func every(c *cobra.Command, fn func(*cobra.Command)) {
	fn(c)
	for _, s := range c.Commands() {
		every(s, fn)
	}
}

func newTree() *cobra.Command { return tree(&session.App{In: os.Stdin}) }

// TestHelp holds the help of every command in one file, where a change is seen.
func TestHelp(t *testing.T) {
	var b bytes.Buffer
	every(newTree(), func(c *cobra.Command) {
		if c.Name() == "help" || c.Name() == "completion" || c.Parent() != nil && c.Parent().Name() == "completion" {
			return
		}
		c.InitDefaultHelpFlag()
		fmt.Fprintf(&b, "=== %s\n", c.CommandPath())
		c.SetOut(&b)
		if err := c.Help(); err != nil {
			t.Fatal(err)
		}
		b.WriteByte('\n')
	})
	golden := filepath.Join("testdata", "help.golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(golden, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.Bytes(), want) {
		got, old := strings.Split(b.String(), "\n"), strings.Split(string(want), "\n")
		for i := range got {
			if i >= len(old) || got[i] != old[i] {
				t.Fatalf("line %d of the help is\n%s\nwrite %s anew with `go test ./cli -update`, and look at what changed", i+1, got[i], golden)
			}
		}
		t.Fatal("the help has become shorter: go test ./cli -update")
	}
}

// TestEveryCommandIsDescribed: what a user can type has a line, and an example
// somewhere.
func TestEveryCommandIsDescribed(t *testing.T) {
	every(newTree(), func(c *cobra.Command) {
		if c.Short == "" {
			t.Errorf("%s: no short description", c.CommandPath())
		}
		if c.Example == "" && c.HasParent() && !c.Parent().HasParent() && c.Name() != "help" && c.Name() != "completion" {
			t.Errorf("%s: no example", c.CommandPath())
		}
		if c.Runnable() && c.Args == nil && c.Name() != "help" && c.HasParent() && c.Parent().Name() != "completion" {
			t.Errorf("%s: takes any arguments without a look", c.CommandPath())
		}
	})
}

// TestFailures holds exit statuses and messages that need no daemon.
func TestFailures(t *testing.T) {
	for _, c := range []struct {
		args   []string
		status int
		says   string
	}{
		{[]string{"no-such"}, 1, `unknown command "no-such"`},
		{[]string{"ps", "extra"}, 1, "usage: berth ps"},
		{[]string{"ps", "--no-such"}, 1, "see `berth ps --help`"},
		{[]string{"--address", "/no/such.sock", "ps"}, 1, "cannot reach the daemon at /no/such.sock: is it running?"},
		{[]string{"--address", "/no/such.sock", "run", "x"}, 125, "cannot reach the daemon"},
		{[]string{"--address", "/no/such.sock", "exec", "a", "b"}, 125, "cannot reach the daemon"},
		{[]string{"-n", "bad name", "ps"}, 1, `namespace "bad name"`},
	} {
		var out, err bytes.Buffer
		a := &session.App{In: os.Stdin, Out: &out, Err: &err, Release: func() {}}
		if status := run(t.Context(), a, c.args); status != c.status || !strings.Contains(err.String(), c.says) || out.Len() != 0 {
			t.Errorf("%v: status %d, stderr %q, stdout %q; want %d and %q", c.args, status, err.String(), out.String(), c.status, c.says)
		}
	}
}
