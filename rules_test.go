// Package berth holds the repository's rules as tests: see ARCHITECTURE.md.
package berth

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/berthd/berth"

// The hard limits; the soft ones (400, 60) are for reviewers.
const (
	maxFileLines    = 600
	maxFuncLines    = 100
	maxPackageLines = 5000
)

// tierImports is the rule of direction: a package may import its own tier and these.
// daemon is the only tier that may import all below it.
var tierImports = map[string][]string{
	"cmd":    {"daemon", "shim", "cli", "base"},
	"daemon": {"server", "engine", "store", "host", "base"},
	"server": {"engine", "store", "base"},
	"engine": {"store", "host", "base"},
	"store":  {"host", "base"},
	"host":   {"base"},
	"shim":   {"host", "base"},
	"cli":    {"base"},
	"base":   {},
	"test":   {"base"},
}

// wireAllowed names the packages that may speak generated wire types: the edge
// tiers, and the adapters of the design.
var wireAllowed = []string{
	"server", "shim", "cli", "test", "cmd",
	"host/shim", "store/snapshot/remote", "engine/event", // adapters
	"engine/pod", "engine/sandbox", "engine/podspec", "host/cni", "host/nri", // CRI messages are their nouns
}

// wireImport matches import paths of generated protocol code.
var wireImport = regexp.MustCompile(`^(github\.com/containerd/containerd/api/|k8s\.io/cri-api|google\.golang\.org/grpc|github\.com/containerd/ttrpc)`)

// productBan are imports the product never has: the system it re-implements.
var productBan = regexp.MustCompile(`^github\.com/containerd/containerd($|/v2|/[^a]|/a[^p])`)

// bannedNames may not be the whole name of a package, file or type.
var bannedNames = []string{
	"manager", "service", "helper", "helpers", "util", "utils", "common", "impl", "core", "misc", "local",
}

// backgroundAllowed are the places outside cmd, daemon and tests that may make a
// context of their own: each entry is a decision.
var backgroundAllowed = []string{"cli/root.go", "shim/"}

type source struct {
	path  string // slash path from the repository root
	dir   string
	lines int
	test  bool
	file  *ast.File
	fset  *token.FileSet
}

// sources parses every Go file of the repository once.
func sources(t *testing.T) []source {
	t.Helper()
	var out []source
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && p != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(p, ".go") {
			return nil
		}
		data, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, p, data, parser.ParseComments)
		if err != nil {
			return err
		}
		p = filepath.ToSlash(p)
		out = append(out, source{p, path.Dir(p), strings.Count(string(data), "\n"), strings.HasSuffix(p, "_test.go"), f, fset})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func tier(dir string) string { return strings.SplitN(dir, "/", 2)[0] }

func imports(s source) []string {
	var out []string
	for _, i := range s.file.Imports {
		p, _ := strconv.Unquote(i.Path.Value)
		out = append(out, p)
	}
	return out
}

func TestImportsGoDown(t *testing.T) {
	for _, s := range sources(t) {
		own := tier(s.dir)
		if s.dir == "." {
			continue
		}
		allowed, known := tierImports[own]
		if !known {
			t.Errorf("%s: %q is not a tier of ARCHITECTURE.md", s.path, own)
			continue
		}
		for _, p := range imports(s) {
			rel, ours := strings.CutPrefix(p, module+"/")
			if !ours {
				continue
			}
			if other := tier(rel); other != own && !slices.Contains(allowed, other) {
				t.Errorf("%s imports %s: %s may import only %v", s.path, rel, own, allowed)
			}
			if why := nested(s.dir, rel); why != "" && !s.test {
				t.Errorf("%s imports %s: %s", s.path, rel, why)
			}
		}
	}
}

// nested enforces that a nested folder is private: engine/image/registry belongs
// to engine/image (and to daemon, which wires). Siblings in server and snapshot
// drivers do not import each other.
func nested(from, to string) string {
	if tier(from) == "daemon" || from == to {
		return ""
	}
	parts := strings.Split(to, "/")
	if len(parts) > 2 {
		owner := strings.Join(parts[:len(parts)-1], "/")
		if from != owner && !strings.HasPrefix(from, owner+"/") && !publicNested(to) {
			return "it is private to " + owner
		}
	}
	if tier(from) == "server" && tier(to) == "server" {
		return "siblings in server do not import each other"
	}
	return ""
}

// publicNested are nested folders that are contracts of their parent, not its insides.
func publicNested(to string) bool {
	return to == "store/snapshot" || to == "store/blob" || strings.HasSuffix(to, "test")
}

func TestWireTypesStayAtTheEdge(t *testing.T) {
	for _, s := range sources(t) {
		if s.test || s.dir == "." {
			continue
		}
		for _, p := range imports(s) {
			if productBan.MatchString(p) && tier(s.dir) != "test" {
				t.Errorf("%s imports %s: the product does not contain the peer", s.path, p)
			}
			if !wireImport.MatchString(p) {
				continue
			}
			ok := slices.ContainsFunc(wireAllowed, func(a string) bool { return s.dir == a || strings.HasPrefix(s.dir, a+"/") })
			if !ok && tier(s.dir) != "daemon" {
				t.Errorf("%s imports wire types %s: allowed only in %v", s.path, p, wireAllowed)
			}
		}
	}
}

func TestOnePackageComment(t *testing.T) {
	docs := map[string][]string{}
	seen := map[string]bool{}
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		seen[s.dir] = true
		if s.file.Doc != nil {
			docs[s.dir] = append(docs[s.dir], s.path)
		}
	}
	for dir := range seen {
		if n := len(docs[dir]); n != 1 {
			t.Errorf("package %s has %d package comments %v, want exactly one", dir, n, docs[dir])
		}
	}
}

func TestSizes(t *testing.T) {
	pkg := map[string]int{}
	for _, s := range sources(t) {
		if ast.IsGenerated(s.file) {
			continue
		}
		if !s.test {
			pkg[s.dir] += s.lines
			if s.lines > maxFileLines {
				t.Errorf("%s: %d lines, hard limit %d", s.path, s.lines, maxFileLines)
			}
		}
		for _, d := range s.file.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || s.test {
				continue
			}
			if n := s.fset.Position(fn.End()).Line - s.fset.Position(fn.Pos()).Line + 1; n > maxFuncLines {
				t.Errorf("%s: %s has %d lines, hard limit %d", s.path, fn.Name.Name, n, maxFuncLines)
			}
		}
	}
	for dir, n := range pkg {
		if n > maxPackageLines {
			t.Errorf("package %s: %d lines, hard limit %d", dir, n, maxPackageLines)
		}
	}
}

func TestNames(t *testing.T) {
	for _, s := range sources(t) {
		base := strings.TrimSuffix(path.Base(s.path), ".go")
		if slices.Contains(bannedNames, base) || slices.Contains(bannedNames, s.file.Name.Name) {
			t.Errorf("%s: says nothing; name the thing it holds", s.path)
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if ts, ok := n.(*ast.TypeSpec); ok && slices.Contains(bannedNames, strings.ToLower(ts.Name.Name)) {
				t.Errorf("%s: type %s says nothing", s.path, ts.Name.Name)
			}
			return true
		})
	}
}

func TestNoInitNoStrayGoroutines(t *testing.T) {
	for _, s := range sources(t) {
		if ast.IsGenerated(s.file) {
			continue
		}
		owned := ownedLines(s)
		ast.Inspect(s.file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if n.Name.Name == "init" && n.Recv == nil && !s.test {
					t.Errorf("%s: init() is not allowed; wire it in daemon/wire.go", s.path)
				}
			case *ast.GoStmt:
				line := s.fset.Position(n.Pos()).Line
				if !s.test && !owned[line-1] && !owned[line] {
					t.Errorf("%s:%d: a go statement needs `// owner: who waits for it` on the line above", s.path, line)
				}
			}
			return true
		})
	}
}

// ownedLines are the lines that end a comment which holds an "owner:" note.
func ownedLines(s source) map[int]bool {
	out := map[int]bool{}
	for _, g := range s.file.Comments {
		if strings.Contains(g.Text(), "owner:") {
			out[s.fset.Position(g.End()).Line] = true
		}
	}
	return out
}

func TestNoLooseContexts(t *testing.T) {
	for _, s := range sources(t) {
		if s.test || tier(s.dir) == "cmd" || tier(s.dir) == "daemon" || tier(s.dir) == "test" ||
			slices.ContainsFunc(backgroundAllowed, func(a string) bool { return strings.HasPrefix(s.path, a) }) {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if id, ok := sel.X.(*ast.Ident); ok && id.Name == "context" && (sel.Sel.Name == "Background" || sel.Sel.Name == "TODO") {
				t.Errorf("%s: context.%s: contexts come from the caller", s.fset.Position(n.Pos()), sel.Sel.Name)
			}
			return true
		})
	}
}

var todo = regexp.MustCompile(`(TODO|FIXME|XXX|HACK)(\(#\d+\))?`)

func TestCommentsAndMessages(t *testing.T) {
	for _, s := range sources(t) {
		for _, g := range s.file.Comments {
			if m := todo.FindStringSubmatch(g.Text()); m != nil && m[2] == "" && s.path != "rules_test.go" {
				t.Errorf("%s: %s without an issue number, as in TODO(#12)", s.fset.Position(g.Pos()), m[1])
			}
		}
		if s.test {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) == 0 {
				return true
			}
			lit, ok := call.Args[0].(*ast.BasicLit)
			if !ok || lit.Kind != token.STRING {
				return true
			}
			if sel, ok := call.Fun.(*ast.SelectorExpr); ok && (sel.Sel.Name == "Errorf" || sel.Sel.Name == "New") {
				text := strings.ToLower(strings.Trim(lit.Value, "`\""))
				if strings.HasPrefix(text, "failed to") || strings.HasPrefix(text, "unable to") || strings.HasPrefix(text, "error ") {
					t.Errorf("%s: %s: say what was being done to which thing", s.fset.Position(n.Pos()), lit.Value)
				}
			}
			return true
		})
	}
}

// TestShimStaysLean keeps out of the shim what costs every pod memory.
func TestShimStaysLean(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "./cmd/berth-shim").CombinedOutput()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, out)
	}
	heavy := regexp.MustCompile(`^(google\.golang\.org/grpc|google\.golang\.org/protobuf/(reflect|proto$|runtime)|github\.com/containerd/(containerd|ttrpc|log)|k8s\.io|github\.com/prometheus|net/http|modernc\.org|github\.com/sirupsen|log/slog|github\.com/spf13)`)
	for _, p := range strings.Fields(string(out)) {
		if heavy.MatchString(p) {
			t.Errorf("cmd/berth-shim links %s: the shim is lean (docs/design/shim.md)", p)
		}
	}
}

func TestDependenciesAreDecided(t *testing.T) {
	mod, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("docs/decisions/0002-dependencies.md")
	if err != nil {
		t.Fatal(err)
	}
	direct := regexp.MustCompile(`(?m)^\s*(?:require )?([a-z][^\s]+\.[^\s]+/[^\s]*|[a-z]+\.[a-z]+/[^\s]+) v[^\s]+\s*$`)
	for _, m := range direct.FindAllStringSubmatch(string(mod), -1) {
		if !strings.Contains(string(doc), fmt.Sprintf("`%s`", m[1])) {
			t.Errorf("dependency %s has no line in docs/decisions/0002-dependencies.md", m[1])
		}
	}
}
