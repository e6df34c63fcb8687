// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmcred/vmcred/vm"
)

func parsed(t *testing.T, text string) (out []string, problems vm.Problems) {
	t.Helper()
	as, problems := Parse("u", []byte(text))
	for _, a := range as {
		out = append(out, a.Section+" "+a.Key+"="+a.Value)
	}
	return out, problems
}

func TestParse(t *testing.T) {
	for _, c := range []struct {
		what, text string
		want       []string
		warnings   int
	}{
		{"empty", "", nil, 0},
		{"plain", "[Unit]\nA=b\n[Service]\n B = c d \n", []string{"Unit A=b", "Service B=c d"}, 0},
		{"no newline at the end", "[S]\nA=b", []string{"S A=b"}, 0},
		{"comments", "# x\n; y\n[S]\n # z=1\nA=b#c\n", []string{"S A=b#c"}, 0},
		{"continued", "[S]\nA=b \\\n  c\n", []string{"S A=b    c"}, 0},
		{"comment between", "[S]\nA=b \\\n# no \\\n; no\nc\n", []string{"S A=b  c"}, 0},
		{"escaped backslash ends the line", "[S]\nA=b\\\\\nC=d\n", []string{`S A=b\\`, "S C=d"}, 0},
		{"continued to the end", "[S]\nA=b\\", []string{"S A=b"}, 0},
		{"CR LF, CR, NUL, BOM", "\xef\xbb\xbf[S]\r\nA=b\rC=d\x00E=f\n", []string{"S A=b", "S C=d", "S E=f"}, 0},
		{"equal signs", "[S]\nA==b=c\n", []string{"S A==b=c"}, 0},
		{"empty value", "[S]\nA=\n", []string{"S A="}, 0},
		{"no key", "[S]\n=b\nword\n", nil, 2},
		{"no section", "A=b\n[S]\n", nil, 1},
		{"broken header", "[S]\nA=b\n[T\nC=d\n[U]\nE=f\n", []string{"S A=b", "U E=f"}, 2},
		{"not UTF-8", "[S]\nA=\xff\nB=c\n", []string{"S B=c"}, 1},
	} {
		got, problems := parsed(t, c.text)
		if diff := cmp.Diff(c.want, got); diff != "" || len(problems) != c.warnings {
			t.Errorf("%s: %v\n%s", c.what, problems, diff)
		}
	}
	as, _ := Parse("u", []byte("\n[S]\n# c\nA=b\\\nc\nD=e\n"))
	if as[0].Pos.Line != 4 || as[1].Pos.Line != 6 {
		t.Errorf("lines %d and %d, want 4 and 6", as[0].Pos.Line, as[1].Pos.Line)
	}
}

// asked shows requests as "Setting ID<Name|Path flags".
func asked(name, text string) []string {
	as, _ := Parse("u", []byte(text))
	var out []string
	for _, r := range Requests(name, as) {
		s := r.Setting + " " + r.ID + "<" + r.Name + r.Path
		if r.Fallback {
			s += " fallback"
		}
		if r.Dynamic {
			s += " dynamic"
		}
		out = append(out, strings.TrimPrefix(strings.Replace(s, "Credential", "", 1), "Load "))
	}
	return out
}

func TestRequests(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"a.service", "LoadCredential=api-key:HOST_API_KEY\nLoadCredential=short", []string{"api-key<HOST_API_KEY", "short<short"}},
		{"a.service", "LoadCredential=id:/run/x:y z", []string{"id</run/x:y z"}},
		{"a.service", "LoadCredential=id:rel/path\nLoadCredential=:x\nLoadCredential=\\", nil},
		{"a.service", "LoadCredential=a:A\nLoadCredential=\nLoadCredential=b:B", []string{"b<B"}},
		{"a.service", "LoadCredential=a:A\nLoadCredential=b:B\nLoadCredential=a:C", []string{"a<C", "b<B"}},
		{"a.service", "LoadCredentialEncrypted=a:A\nLoadCredentialEncrypted=", nil},
		{"a.service", "LoadCredential=a:A\nLoadCredentialEncrypted=a:B", []string{"LoadEncrypted a<B"}},
		{"a.service", "SetCredential=a:secret\nLoadCredential=a:A", []string{"a<A fallback"}},
		{"a.service", "SetCredential=a:secret\nSetCredential=\nLoadCredential=a:A", []string{"a<A"}},
		{"a.service", "ImportCredential=A*\nImportCredential=B\nImportCredential=C*:x.", []string{"Import <A*", "Import <B", "Import x.<C*"}},
		{"a.service", "ImportCredential=A?\nImportCredential=*A\nImportCredential=x/y", nil},
		{"a@.service", "LoadCredential=a:HOST_%i\nLoadCredential=b:X%%Y\nLoadCredential=c:%d/x", []string{"a<HOST_%i dynamic", "b<X%Y", "c<%d/x dynamic"}},
		{"a.service", `LoadCredential=a\:b\\:N`, []string{`a:b\<N`}},
		{"a.socket", "[Socket]\nLoadCredential=a:A\n[Service]\nLoadCredential=b:B", []string{"a<A"}},
		{"a.timer", "LoadCredential=a:A", nil},
	} {
		if diff := cmp.Diff(c.want, asked(c.name, "[Service]\n"+c.text)); diff != "" {
			t.Errorf("%s: %s\n%s", c.name, c.text, diff)
		}
	}
}

func TestWants(t *testing.T) {
	for _, c := range []struct {
		r    Request
		name string
		want bool
	}{
		{Request{Name: "A"}, "A", true},
		{Request{Name: "A"}, "AB", false},
		{Request{Name: "A*"}, "AB", false},
		{Request{Name: "A*"}, "A*", true},
		{Request{Name: "A*", Setting: "ImportCredential"}, "AB", true},
		{Request{Name: "A*", Setting: "ImportCredential"}, "A", true},
		{Request{Name: "A*", Setting: "ImportCredential"}, "B", false},
		{Request{Name: "*", Setting: "ImportCredential"}, "B", true},
		{Request{Name: "A%iB", Dynamic: true}, "AxyB", true},
		{Request{Name: "A%iB", Dynamic: true}, "AxyC", false},
		{Request{Name: "A%iB%jC", Dynamic: true}, "AxBxC", true},
		{Request{Name: "A%%B%i", Dynamic: true}, "A%Bx", true},
		{Request{Name: "A%i*", Dynamic: true, Setting: "ImportCredential"}, "Ax", true},
		{Request{Path: "/x"}, "", false},
	} {
		if got := c.r.Wants(c.name); got != c.want {
			t.Errorf("%+v wants %q: %v", c.r, c.name, got)
		}
	}
}

func put(t *testing.T, dir, name, text string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if target, ok := strings.CutPrefix(text, "-> "); ok {
		if err := os.Symlink(target, path); err != nil {
			t.Fatal(err)
		}
		return
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func load1(name string) string { return "[Service]\nLoadCredential=x:" + name + "\n" }

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	etc, lib := filepath.Join(dir, "etc"), filepath.Join(dir, "lib")
	for name, text := range map[string]string{
		"lib/plain.service":                         load1("PLAIN"),
		"lib/over.service":                          load1("LIB"),
		"etc/over.service":                          load1("ETC"),
		"lib/masked.service":                        load1("MASKED"),
		"etc/masked.service":                        "-> /dev/null",
		"etc/empty.service":                         "",
		"lib/drop.service":                          load1("OLD"),
		"lib/drop.service.d/20.conf":                "[Service]\nLoadCredential=y:LIB20\n",
		"etc/drop.service.d/20.conf":                "[Service]\nLoadCredential=y:ETC20\n",
		"etc/drop.service.d/10.conf":                "[Service]\nLoadCredential=\n",
		"etc/drop.service.d/note.txt":               "[Service]\nLoadCredential=z:NO\n",
		"lib/service.d/30.conf":                     "[Service]\nImportCredential=all.*\n",
		"lib/foo-bar-baz.service":                   load1("FOO"),
		"lib/foo-.service.d/a.conf":                 "[Service]\nLoadCredential=p:PREFIX\n",
		"lib/foo-bar-.service.d/a.conf":             "[Service]\nLoadCredential=p:LONGER\n",
		"lib/t@.service":                            load1("T_%i"),
		"etc/t@one.service.d/a.conf":                "[Service]\nLoadCredential=one:ONE\n",
		"etc/alias.service":                         "-> plain.service",
		"etc/absolute.service":                      "-> /lib/systemd/system/plain.service",
		"etc/out.service":                           "-> ../outside.service",
		"outside.service":                           load1("OUTSIDE"),
		"etc/loop.service":                          "-> loop.service",
		"etc/relative.service":                      "-> ../lib/renamed.service.in",
		"lib/renamed.service.in":                    load1("RELATIVE"),
		"etc/multi-user.target.wants/plain.service": "-> ../../lib/plain.service",
		"etc/a.socket":                              "[Socket]\nLoadCredential=s:SOCK\n",
		"etc/b.timer":                               "[Timer]\n",
	} {
		put(t, dir, name, text)
	}
	units, problems := Load([]string{etc, lib})
	got := map[string][]string{}
	for _, u := range units {
		for _, r := range u.Requests() {
			if r.Name != "all.*" {
				got[u.Name] = append(got[u.Name], r.Name)
			}
		}
	}
	want := map[string][]string{
		"plain.service": {"PLAIN"}, "over.service": {"ETC"}, "drop.service": {"ETC20"}, "foo-bar-baz.service": {"FOO", "LONGER"},
		"t@.service": {"T_%i"}, "t@one.service": {"T_%i", "ONE"}, "relative.service": {"RELATIVE"}, "a.socket": {"SOCK"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	said := problems.Error()
	for _, part := range []string{"etc/out.service: not read: it is a link out of", "etc/loop.service: not read: "} {
		if !strings.Contains(said, part) {
			t.Errorf("%q is not said in:\n%s", part, said)
		}
	}
	if len(problems) != 2 {
		t.Errorf("problems:\n%s", said)
	}
}

func TestLoadNothing(t *testing.T) {
	dir := t.TempDir()
	_, problems := Load([]string{filepath.Join(dir, "none")})
	if len(problems) != 1 || problems[0].Severity != vm.Error || problems[0].Field != "guest.units" {
		t.Errorf("%v", problems)
	}
	units, problems := Load([]string{dir})
	if len(units) > 0 || len(problems) > 0 {
		t.Errorf("%v %v", units, problems)
	}
	put(t, dir, "one.service", load1("ONE"))
	units, problems = Load([]string{filepath.Join(dir, "one.service")})
	if len(units) != 1 || len(problems) > 0 {
		t.Errorf("a single file: %v %v", units, problems)
	}
}

func TestDropInDirs(t *testing.T) {
	want := []string{"foo-bar@x.service.d", "foo-@x.service.d", "foo-bar@.service.d", "foo-@.service.d", "service.d"}
	if got := dropInDirs("foo-bar@x.service"); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	want = []string{"a-b-.service.d", "a-.service.d", "service.d"}
	if got := dropInDirs("a-b-.service"); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

// FuzzParse: never a panic, and whatever is read is well formed.
func FuzzParse(f *testing.F) {
	text, err := os.ReadFile(template)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte("[Service]\nLoadCredential=a:b\\\n# c\n d\nImportCredential=x*:%i\nSetCredential=a:\\\n"))
	f.Add([]byte("[S\n]\r=\x00[]\n\\\\\\"))
	f.Fuzz(func(t *testing.T, data []byte) {
		as, problems := Parse("u", data)
		for _, a := range as {
			if a.Section == "" || a.Key == "" || a.Key != strings.Trim(a.Key, whitespace) || a.Value != strings.Trim(a.Value, whitespace) ||
				strings.ContainsAny(a.Key+a.Value, "\n\r\x00") || a.Pos.Line < 1 {
				t.Fatalf("%+v", a)
			}
		}
		for _, p := range problems {
			if p.Severity != vm.Warning || p.Pos.Line < 1 {
				t.Fatalf("%+v", p)
			}
		}
		for _, name := range []string{"a.service", "a@b.socket"} {
			for _, r := range Requests(name, as) {
				r.Wants("A")
				if lit := r.Literal(); lit != "" && !r.Wants(lit) {
					t.Fatalf("%+v does not want its own name", r)
				}
				if (r.Name == "") == (r.Path == "") {
					t.Fatalf("%+v has not one source", r)
				}
			}
		}
	})
}
