package config

import (
	"bytes"
	"fmt"

	"github.com/pelletier/go-toml/v2"
)

// Print writes the whole configuration as a file of the newest version, which reads
// back to the same; explained, each key has its meaning above it.
func (c Config) Print(explained bool) ([]byte, error) {
	if c.Plugins.TTRPC.Address == "" && c.Plugins.GRPC.Address != DefaultAddress {
		c.Plugins.TTRPC.Address = c.TTRPCAddress()
	}
	var b bytes.Buffer
	e := toml.NewEncoder(&b)
	e.SetIndentTables(true)
	if err := e.Encode(c); err != nil {
		return nil, fmt.Errorf("write configuration: %w", err)
	}
	if len(c.Plugins.Others) > 0 { // kept for those who share the file
		rest, err := toml.Marshal(map[string]any{"plugins": c.Plugins.Others})
		if err != nil {
			return nil, fmt.Errorf("write tables of other parts: %w", err)
		}
		b.WriteByte('\n')
		b.Write(bytes.TrimPrefix(rest, []byte("[plugins]\n")))
	}
	if explained {
		return b.Bytes(), nil
	}
	var out []byte
	for line := range bytes.Lines(b.Bytes()) {
		if !bytes.HasPrefix(bytes.TrimLeft(line, " "), []byte("#")) {
			out = append(out, line...)
		}
	}
	return out, nil
}

// printTree writes a tree with the version first and the tables last.
func printTree(n *node) ([]byte, error) {
	tree, _ := n.plain().(map[string]any)
	var b bytes.Buffer
	fmt.Fprintf(&b, "version = %d\n", Newest)
	e := toml.NewEncoder(&b)
	e.SetIndentTables(true)
	if err := e.Encode(tree); err != nil {
		return nil, fmt.Errorf("write configuration: %w", err)
	}
	return b.Bytes(), nil
}
