package memory

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

// resident counts the KiB of the program's file that are mapped now.
func resident(t *testing.T) (kib int) {
	t.Helper()
	data, err := os.ReadFile("/proc/self/smaps_rollup")
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(data) {
		if rest, ok := bytes.CutPrefix(line, []byte("Rss:")); ok {
			for _, c := range bytes.Fields(rest)[0] {
				kib = kib*10 + int(c-'0')
			}
		}
	}
	return kib
}

func TestTrim(t *testing.T) {
	spans := program()
	if len(spans) == 0 {
		t.Fatal("the program's own mappings were not found")
	}
	table := strings.Repeat("what is in the read-only data must be there afterwards too", 3)
	data := []byte(table)
	before := resident(t)
	Trim()
	after := resident(t)
	if after >= before {
		t.Errorf("resident %d KiB before and %d after", before, after)
	}
	if string(data) != table || !strings.HasPrefix(table, "what is") {
		t.Error("data changed")
	}
	for range 100 {
		Trim()
	}
}
