package daemon

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/daemon/config"
)

// ConfigCommand is `berth config`.
func ConfigCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Show, check and migrate the daemon's configuration",
		Long: `Show, check and migrate the daemon's configuration. The format is containerd's: files of its versions 1 to 4 are
understood under the same names.`,
	}
	cmd.PersistentFlags().StringVarP(&file, "config", "c", "", "configuration `file` (default "+config.DefaultFile+", if it is there)")
	add := func(use, short string, args cobra.PositionalArgs, run func(w io.Writer, args []string) error) *cobra.Command {
		c := &cobra.Command{Use: use, Short: short, Args: args, RunE: func(c *cobra.Command, args []string) error { return run(c.OutOrStdout(), args) }}
		cmd.AddCommand(c)
		return c
	}
	add("default", "Print every key with its default and its meaning", cobra.NoArgs, func(w io.Writer, _ []string) error {
		return print(w, config.Default(), true)
	})
	add("dump", "Print what the daemon would use, after imports and migration", cobra.NoArgs, func(w io.Writer, _ []string) error {
		c, err := config.Load(file, config.Override{})
		if err != nil {
			return err
		}
		complain(os.Stderr, c)
		return print(w, c, false)
	})
	add("migrate", "Print the file's own text in the newest version", cobra.NoArgs, func(w io.Writer, _ []string) error {
		out, err := config.Migrate(or(file, config.DefaultFile))
		if err != nil {
			return err
		}
		_, err = w.Write(out)
		return err
	})
	var strict bool
	check := add("check", "Say what is wrong, unknown or deprecated in the file", cobra.NoArgs, func(w io.Writer, _ []string) error {
		c, err := config.Load(file, config.Override{})
		complain(w, c)
		if err != nil {
			return err
		}
		if n := len(c.Notes); strict && n > 0 {
			return fmt.Errorf("%d keys have no effect", n)
		}
		fmt.Fprintf(w, "ok: %s\n", strings.Join(orOne(c.Files, "no file, all defaults"), ", "))
		return nil
	})
	check.Flags().BoolVar(&strict, "strict", false, "fail on unknown keys too")
	add("explain KEY", "Meaning, default and value of the keys that hold a word", cobra.ExactArgs(1), func(w io.Writer, args []string) error {
		c, err := config.Load(file, config.Override{})
		if err != nil {
			return err
		}
		return explain(w, c, args[0])
	})
	return cmd
}

func orOne(l []string, def string) []string {
	if len(l) == 0 {
		return []string{def}
	}
	return l
}

func print(w io.Writer, c config.Config, explained bool) error {
	out, err := c.Print(explained)
	if err != nil {
		return err
	}
	_, err = w.Write(out)
	return err
}

func complain(w io.Writer, c config.Config) {
	for _, n := range c.Notes {
		fmt.Fprintln(w, "warning:", n)
	}
	for _, d := range c.Deprecations {
		fmt.Fprintln(w, "deprecated:", d.Message)
	}
}

func explain(w io.Writer, c config.Config, word string) error {
	found := false
	for _, k := range config.Keys() {
		if !strings.Contains(strings.ToLower(k.Path), strings.ToLower(word)) || strings.Contains(k.Type, "table") && k.Default == "" {
			continue
		}
		found = true
		fmt.Fprintf(w, "%s (%s, default %s)\n    %s\n", k.Path, k.Type, k.Default, k.Meaning)
		values, err := c.Value(k.Path)
		if err != nil {
			return err
		}
		var names []string
		for name := range values {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			fmt.Fprintf(w, "    now: %s = %s\n", name, values[name])
		}
	}
	if !found {
		return errors.New("no key holds the word " + word + "; `berth config default` lists all")
	}
	return nil
}
