// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/vm"
)

// asJSON turns a tree of nodes into JSON, as a machine would write the file.
func asJSON(n *node) any {
	switch n.kind {
	case kindMapping:
		out := map[string]any{}
		for _, p := range n.pairs {
			out[p.key] = asJSON(p.value)
		}
		return out
	case kindSequence:
		out := []any{}
		for _, c := range n.items {
			out = append(out, asJSON(c))
		}
		return out
	}
	switch {
	case n.typ == typeNull:
		return nil
	case n.typ == typeBool && (n.text == "true" || n.text == "false"):
		return n.text == "true"
	case n.typ == typeInt && isDigits(n.text) && (n.text == "0" || n.text[0] != '0'):
		return json.Number(n.text)
	default:
		return n.text
	}
}

// TestJSONIsTheSame: the same file as YAML and as JSON gives the same Spec.
func TestJSONIsTheSame(t *testing.T) {
	text, err := os.ReadFile("testdata/test-vm.yaml")
	if err != nil {
		t.Fatal(err)
	}
	root, problems := parseYAML("x", text)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	data, err := json.MarshalIndent(asJSON(root), "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	a, pa := Parse("/x/test-vm.yaml", text)
	b, pb := Parse("/x/test-vm.json", data)
	if len(pa.Fatal())+len(pb.Fatal()) > 0 {
		t.Fatal(pa, pb)
	}
	if diff := cmp.Diff(a, b, noPos, cmpopts.IgnoreFields(vm.Spec{}, "File")); diff != "" {
		t.Errorf("(-yaml +json):\n%s", diff)
	}
}

func TestJSONRefused(t *testing.T) {
	const start = `{"version": 1, "hypervisor": "qemu", "boot": {"kernel": "/k"}`
	for _, c := range []struct{ text, want string }{
		{"", "1: the file is empty"},
		{start, "the file ends in the middle"},
		{start + "} x", "a.json:1:64: this is not JSON: invalid character 'x' after"},
		{start + "}{}", "a.json:1:63: this is not JSON: invalid character '{' after"},
		{start + ",\n  \"cpus\": \"2\"}", "a.json:2:11: cpus: this must be a whole number"},
		{start + ",\n  \"cpus\": 2, \"cpus\": 3}", "a.json:2:14: cpus: this key is here twice, first in line 2"},
		{start + `, "static": {"A": "\ud800"}}`, "surrogate"},
		{start + `, "static": {"A": "\\ufffd\ud800"}}`, "surrogate"},
		{start + `, "static": {"A": null}}`, "must be one value"},
		{start + ", \"static\": {\"A\": \"\xff\"}}", "not UTF-8"},
		{start + `, "memory": 1.5}`, "must be a size"},
		{start + `, "shares": ` + strings.Repeat("[", 99) + strings.Repeat("]", 99) + "}", "nested too deeply"},
		{"# comment\n" + start + "}", "a.json:1:1: this is not JSON"},
	} {
		_, problems := Parse("/x/a.json", []byte(c.text))
		if len(problems) != 1 || !strings.Contains(problems[0].Error(), strings.TrimPrefix(c.want, "1: ")) {
			t.Errorf("%s\ngives %v, want %q", c.text, problems, c.want)
		}
	}
	spec, problems := Parse("/x/a.json", []byte(start+`, "static": {"A": "\ud83d\ude00\ufffd", "B": 8080, "C": true}, "memory": 1048576}`))
	if len(problems) > 0 || spec.Static[0].Value != "😀\uFFFD" || spec.Static[1].Value != "8080" || spec.Static[2].Value != "true" || spec.Memory != 1<<20 {
		t.Errorf("%+v %v", spec, problems)
	}
}

// holds checks what everyone else may rely on in a Spec without problems.
func holds(t *testing.T, s *vm.Spec) {
	t.Helper()
	must := func(ok bool, what string) {
		t.Helper()
		if !ok {
			t.Fatalf("%s: %+v", what, s)
		}
	}
	must(CheckName(s.Name) == nil, "name")
	must(s.CPUs >= 1 && s.Memory >= minMemory && s.Memory%4096 == 0, "cpus, memory")
	must((s.Boot.Kernel == "") != (s.Boot.Firmware == ""), "kernel or firmware")
	must(s.Boot.Kernel == "" || filepath.IsAbs(s.Boot.Kernel) && filepath.Clean(s.Boot.Kernel) == s.Boot.Kernel, "kernel")
	must(s.Boot.Firmware == "" || s.Boot == vm.Boot{Firmware: s.Boot.Firmware} && len(s.Disks) > 0, "firmware")
	must(s.Boot.Firmware == "" || s.Boot.Firmware == vm.FirmwareBIOS || filepath.IsAbs(s.Boot.Firmware), "firmware's path")
	must(len(s.CloudHypervisor.Extra) == 0 || json.Valid(s.CloudHypervisor.Extra), "extra")
	must(s.StartTimeout >= time.Second && s.StartTimeout <= time.Hour, "start-timeout")
	must(s.Notify == vm.NotifyBoot || s.Notify == vm.NotifyGuest && s.Vsock != nil && s.Guest.Systemd >= notifySystemd, "notify")
	must(s.Boot.Initrd == "" || filepath.IsAbs(s.Boot.Initrd), "initrd")
	must((s.Console.Mode == vm.ConsoleFile) == (s.Console.Path != ""), "console")
	must(s.StopTimeout >= 0 && s.StopTimeout <= time.Hour && s.Guest.Systemd > 0 && s.Unit != "", "stop-timeout, systemd, unit")
	must(s.Vsock == nil || s.Vsock.CID >= 3, "cid")
	for _, d := range s.Disks {
		must(filepath.IsAbs(d.Path) && (d.Format == "raw" || d.Format == "qcow2") && len(d.Serial) <= 20, "disk")
	}
	for _, n := range s.Interfaces {
		must(n.Type == "tap" && n.ID != "" && len(n.ID) <= 15, "interface")
	}
	names := map[string]bool{}
	for i, c := range s.Credentials {
		must(credential.CheckName(c.Host) == nil && credential.CheckName(c.Guest) == nil && !names[c.Guest], "credential")
		must(i == 0 || s.Credentials[i-1].Host < c.Host, "order of credentials")
		must((c.Source.Kind == vm.SourceUnit) == (c.Source.Path == ""), "source")
		must(c.Pos.Line > 0, "position")
		names[c.Guest] = true
	}
	for i, st := range s.Static {
		must(credential.CheckName(st.Name) == nil && !strings.Contains(st.Name, "=") && !names[st.Name], "static")
		must(i == 0 || s.Static[i-1].Name < st.Name, "order of static")
	}
	for _, o := range s.OEMStrings {
		must(o != "" && !strings.Contains(o, "\x00"), "oem-strings")
	}
}

// FuzzLoad: never a panic; either problems that stop it or a Spec that holds.
func FuzzLoad(f *testing.F) {
	for _, path := range []string{"testdata/test-vm.yaml", "testdata/five-wrong.yaml"} {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text, false)
		if root, _ := parseYAML(path, text); root != nil {
			data, err := json.Marshal(asJSON(root))
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data, true)
		}
	}
	f.Add([]byte(least+"credentials: {a: {sops: {file: x, key: k}}, b: {allow-empty: true}}\noem-strings: [a]\nstop-timeout: 1m\n"), false)
	f.Add([]byte(ready+"qemu: {extra: [-a]}\ncloud-hypervisor: {extra: {a: [1, -2.5e3, {b: ~}, true, \"\"]}}\nwatchdog: true\nshares: [{tag: a, source: /s, user: u}]\n"), false)
	f.Add([]byte("version: 1\nhypervisor: qemu\nboot: {firmware: bios}\ndisks: [{path: a}]\n"), false)
	f.Add([]byte("a: &x [*x, *x]\n<<: *x\n"), false)
	f.Fuzz(func(t *testing.T, data []byte, isJSON bool) {
		path := "/x/a.yaml"
		if isJSON {
			path = "/x/a.json"
		}
		spec, problems := Parse(path, data)
		if (spec == nil) != (len(problems.Fatal()) > 0) {
			t.Fatalf("spec %v, problems %v", spec, problems)
		}
		for _, p := range problems {
			if p.Pos.File != path || p.Message == "" {
				t.Fatalf("%+v", p)
			}
		}
		if spec != nil {
			holds(t, spec)
		}
	})
}
