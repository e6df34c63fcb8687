// SPDX-License-Identifier: Apache-2.0

// Package vmcred_test holds the rules of the repository as tests.
package vmcred_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/vmcred/vmcred"

// mayImport is the structure of the house: each room and the rooms it may
// import. A room that is not listed may import none and be imported by none.
var mayImport = map[string][]string{
	"secret":           {},
	"vm":               {},
	"leak":             {"secret"},
	"network":          {"vm"},
	"ready":            {},
	"state":            {},
	"internal/launch":  {},
	"internal/escape":  {},
	"internal/kvm":     {},
	"internal/trusted": {},
	"internal/peer":    {},
	"credential":       {"secret", "internal/trusted"},
	"unit":             {"vm", "credential", "broker/wire"},
	"config":           {"vm", "credential", "internal/trusted"},
	"check":            {"vm", "credential", "unit"},
	"delivery":         {"secret", "credential"},
	"hypervisor":       {"vm", "delivery", "internal/launch"},

	"hypervisor/console":    {"hypervisor", "vm", "internal/launch"},
	"hypervisor/hostcheck":  {"hypervisor/console", "vm", "internal/launch", "internal/trusted"},
	"hypervisor/program":    {"hypervisor", "hypervisor/console", "internal/trusted"},
	"hypervisor/process":    {"hypervisor", "internal/launch"},
	"hypervisor/daemon":     {"hypervisor/console", "internal/launch"},
	"hypervisor/virtiofs":   {"hypervisor", "hypervisor/console", "hypervisor/daemon", "hypervisor/hostcheck", "hypervisor/program", "internal/launch", "vm"},
	"hypervisor/vhostvsock": {"hypervisor", "hypervisor/daemon", "hypervisor/program", "internal/launch"},
	"hypervisor/qemu":       {"hypervisor", "hypervisor/console", "hypervisor/hostcheck", "hypervisor/process", "hypervisor/program", "hypervisor/qemu/option", "hypervisor/qemu/qmp", "hypervisor/vhostvsock", "hypervisor/virtiofs", "hypervisor/vsock", "vm", "delivery", "secret", "credential", "internal/launch", "internal/kvm"},

	"hypervisor/qemu/option": {},
	"hypervisor/qemu/qmp":    {},

	"internal/systemctl": {},
	"internal/generator": {"config", "unit", "vm", "hypervisor/console", "hypervisor/hostcheck", "hypervisor/virtiofs"},

	"hypervisor/cloudhypervisor":     {"hypervisor", "hypervisor/cloudhypervisor/api", "hypervisor/console", "hypervisor/hostcheck", "hypervisor/process", "hypervisor/program", "hypervisor/virtiofs", "hypervisor/vsock", "vm", "delivery", "secret", "credential", "internal/launch", "internal/kvm"},
	"hypervisor/cloudhypervisor/api": {"secret"},
	"hypervisor/vsock":               {"internal/launch"},
	"shim":                           {"vm"},
	"audit":                          {"secret"},
	"store":                          {"secret"},
	"store/folder":                   {"store", "secret", "internal/trusted"},
	"broker/wire":                    {"secret"},
	"broker/transfer":                {"secret"},
	"broker/client":                  {"broker/wire", "secret"},
	"broker":                         {"broker/transfer", "broker/wire", "store", "audit", "config", "credential", "secret", "vm", "unit", "internal/peer"},
	"runner":                         {"hypervisor", "vm", "delivery", "secret", "credential", "ready", "state", "internal/launch"},
	"internal/cli":                   {"*"},
	"internal/man":                   {"internal/cli"},
	"cmd/vmcred":                     {"internal/cli"},
}

// mayNotReach lists what a room must not reach, even through others.
var mayNotReach = map[string][]string{
	"runner":   {"crypto/x509", "crypto/tls", "net/http", "filippo.io/age", "go.yaml.in", module + "/config"},
	"delivery": {"os/exec", "net", "crypto/x509"},
	"secret":   {"net", "os/exec"},
	"audit":    {"net", "os/exec"},
	"vm":       {"os/exec", "net"},
	"shim":     {"os/exec", "net"},
	"store":    {"os/exec", "net"},
}

type pkg struct {
	ImportPath, Dir, Doc   string
	Imports, Deps, GoFiles []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Dir,Doc,Imports,Deps,GoFiles", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

func room(importPath string) string { return strings.TrimPrefix(importPath, module+"/") }

// isTestOnly reports rooms that only tests, examples and benchmarks use.
func isTestOnly(r string) bool {
	return strings.HasPrefix(r, "hypervisor/hypervisortest") || r == "store/storetest" || r == "hypervisor/cloudhypervisor/standin" || strings.HasPrefix(r, "examples/") ||
		strings.HasPrefix(r, "bench") || strings.HasPrefix(r, "internal/test")
}

func TestArrowsRunOneWay(t *testing.T) {
	for _, p := range packages(t) {
		r := room(p.ImportPath)
		if isTestOnly(r) || p.ImportPath == module || len(p.GoFiles) == 0 {
			continue
		}
		allowed, listed := mayImport[r]
		if !listed {
			t.Errorf("%s is not in the structure: add it to mayImport and to docs/design.md", r)
		}
		for _, imp := range p.Imports {
			if !strings.HasPrefix(imp, module+"/") || slices.Contains(allowed, "*") {
				continue
			}
			if !slices.Contains(allowed, room(imp)) {
				t.Errorf("%s imports %s, which the structure does not allow", r, room(imp))
			}
		}
		for _, banned := range mayNotReach[r] {
			for _, dep := range p.Deps {
				if dep == banned || strings.HasPrefix(dep, banned+"/") && banned != "net" {
					t.Errorf("%s reaches %s", r, dep)
				}
			}
		}
	}
}

func TestEveryPackageHasADoc(t *testing.T) {
	for _, p := range packages(t) {
		if len(p.GoFiles) > 0 && p.Doc == "" {
			t.Errorf("%s has no package comment", room(p.ImportPath))
		}
	}
}

// sources returns the tracked and the new files whose name ends in one of the suffixes.
func sources(t *testing.T, suffixes ...string) []string {
	t.Helper()
	out, err := exec.Command("git", "ls-files", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		t.Skipf("SKIPPED: needs a git checkout: %v", err)
	}
	var files []string
	for f := range strings.Lines(string(out)) {
		f = strings.TrimSpace(f)
		if slices.ContainsFunc(suffixes, func(s string) bool { return strings.HasSuffix(f, s) }) {
			if _, err := os.Stat(f); err == nil {
				files = append(files, f)
			}
		}
	}
	if len(files) == 0 {
		t.Fatal("found no source files")
	}
	return files
}

func TestEverySourceFileNamesItsLicence(t *testing.T) {
	for _, f := range sources(t, ".go", ".c", ".h", ".S", ".ld", ".sh", ".service", "Makefile") {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		head := b[:min(len(b), 400)]
		if !bytes.Contains(head, []byte("SPDX-License-Identifier: Apache-2.0")) {
			t.Errorf("%s: no SPDX line at its head", f)
		}
	}
}

func TestNoFileIsTooLong(t *testing.T) {
	for _, f := range sources(t, ".go", ".c", ".h") {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if n := bytes.Count(b, []byte("\n")); n > 500 {
			t.Errorf("%s has %d lines, more than 500", f, n)
		}
	}
	b, err := os.ReadFile("cmd/vmcred/main.go")
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(b, []byte("\n")); n >= 20 {
		t.Errorf("main.go has %d lines; it only hands over", n)
	}
}

func TestNothingHasInit(t *testing.T) {
	for _, f := range sources(t, ".go") {
		file, err := parser.ParseFile(token.NewFileSet(), f, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				t.Errorf("%s has an init function", f)
			}
		}
	}
}

// Package-level variables may be constants in all but name: errors, tables,
// compiled patterns, embedded files. Anything assigned to later is state.
func TestNoPackageLevelState(t *testing.T) {
	for _, f := range sources(t, ".go") {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), f, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		globals := map[string]bool{}
		for _, d := range file.Decls {
			if gen, ok := d.(*ast.GenDecl); ok && gen.Tok == token.VAR {
				for _, s := range gen.Specs {
					for _, n := range s.(*ast.ValueSpec).Names {
						globals[n.Name] = n.Name != "_"
					}
				}
			}
		}
		for _, d := range file.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok {
				for _, name := range assigned(fn) {
					if globals[name] {
						t.Errorf("%s assigns to the package-level variable %s", f, name)
					}
				}
			}
		}
	}
}

// assigned are the names that a function assigns to and does not declare itself.
func assigned(fn *ast.FuncDecl) []string {
	own := map[string]bool{}
	var names []string
	declare := func(exprs ...ast.Expr) {
		for _, e := range exprs {
			if id, ok := e.(*ast.Ident); ok {
				own[id.Name] = true
			}
		}
	}
	ast.Inspect(fn, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.Field:
			for _, id := range n.Names {
				declare(id)
			}
		case *ast.ValueSpec:
			for _, id := range n.Names {
				declare(id)
			}
		case *ast.RangeStmt:
			if n.Tok == token.DEFINE {
				declare(n.Key, n.Value)
			}
		case *ast.IncDecStmt:
			names = append(names, root(n.X))
		case *ast.AssignStmt:
			if n.Tok == token.DEFINE {
				declare(n.Lhs...)
				return true
			}
			for _, l := range n.Lhs {
				names = append(names, root(l))
			}
		}
		return true
	})
	return slices.DeleteFunc(names, func(name string) bool { return own[name] })
}

// root is the variable that x, x[i] or x.field is part of.
func root(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.IndexExpr:
		return root(e.X)
	case *ast.SelectorExpr:
		return root(e.X)
	}
	return ""
}

// Nothing of the machines this was written on, and no sleeping in tests.
func TestWords(t *testing.T) {
	skips := regexp.MustCompile(`\bt\.Skipf?\((.*)`)
	for _, f := range sources(t, ".go", ".md", ".sh", "Makefile", ".yaml", ".service") {
		if f == "rules_test.go" {
			continue
		}
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(f, "_test.go") && bytes.Contains(b, []byte("time.Sleep(")) {
			t.Errorf("%s sleeps: wait for the event", f)
		}
		// scripts/test shows what stands behind this word.
		for _, m := range skips.FindAllSubmatch(b, -1) {
			if !bytes.HasPrefix(m[1], []byte(`"SKIPPED`)) {
				t.Errorf("%s: a skip has to begin with SKIPPED and say what it needs: %s", f, m[0])
			}
		}
	}
}
