package session

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/cli/table"
	"github.com/berthd/berth/cli/term"
)

// ExactArgs is cobra's check with a message that shows the usage.
func ExactArgs(n int) cobra.PositionalArgs { return RangeArgs(n, n) }

// MinArgs is the same for at least n.
func MinArgs(n int) cobra.PositionalArgs { return RangeArgs(n, -1) }

// RangeArgs is the same for low to high; below 0, high has no bound.
func RangeArgs(low, high int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) >= low && (high < 0 || len(args) <= high) {
			return nil
		}
		return fmt.Errorf("usage: %s; see `%s --help`", cmd.UseLine(), cmd.CommandPath())
	}
}

// Noun makes a command of sub-commands.
func Noun(use, short string, aliases []string, subs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Aliases: aliases, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	var examples []string
	for _, s := range subs {
		if s.Example != "" {
			examples = append(examples, s.Example)
		}
	}
	cmd.Example = strings.Join(examples, "\n")
	cmd.AddCommand(subs...)
	return cmd
}

// Keys are a map's, sorted.
func Keys[T any](m map[string]T) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}

// Listing is the ls of a noun: --quiet, --format and --filter.
type Listing struct {
	Quiet   bool
	Format  string
	Filters []string
}

// Add adds the flags; filtered says whether --filter is one.
func (l *Listing) Add(cmd *cobra.Command, filtered bool) *cobra.Command {
	cmd.Aliases = append(cmd.Aliases, "list")
	f := cmd.Flags()
	f.BoolVarP(&l.Quiet, "quiet", "q", false, "print names only")
	f.StringVar(&l.Format, "format", "", "table, json or a Go `template`")
	if filtered {
		f.StringArrayVar(&l.Filters, "filter", nil, "a `filter` of the daemon, as labels.KEY==VALUE; several: any of them")
	}
	return cmd
}

// Print prints a listing; name is what --quiet prints.
func Print[T any](a *App, l Listing, rows []T, name func(T) string, columns ...string) error {
	if !l.Quiet {
		return table.Write(a.Out, rows, l.Format, table.Columns(columns...))
	}
	for _, r := range rows {
		fmt.Fprintln(a.Out, name(r))
	}
	return nil
}

// JSON prints a value for people.
func (a *App) JSON(v any) error {
	e := json.NewEncoder(a.Out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "    ")
	return e.Encode(v)
}

// Objects prints a JSON list, or each object by a template.
func (a *App) Objects(all []any, format string) error {
	if format == "" || format == "json" {
		if all == nil {
			all = []any{}
		}
		return a.JSON(all)
	}
	t, err := table.Parse(format)
	if err != nil {
		return err
	}
	for _, v := range all {
		if err := table.Execute(a.Out, t, v); err != nil {
			return err
		}
	}
	return nil
}

// IntoFile writes to a file, which appears whole or not at all, or to stdout,
// which must not be a terminal.
func (a *App) IntoFile(name string, fn func(io.Writer) error) error {
	if name == "" || name == "-" {
		if f, ok := a.Out.(*os.File); ok && term.Is(f) {
			return errors.New("this would write an archive to your terminal: use -o FILE, or redirect")
		}
		return fn(a.Out)
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".berth-save-")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	err = fn(f)
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}
