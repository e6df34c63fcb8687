// SPDX-License-Identifier: Apache-2.0

package vmcred_test

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/config"
	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/cloudhypervisor"
	"github.com/vmcred/vmcred/hypervisor/qemu"
	"github.com/vmcred/vmcred/vm"
)

// strange is a key that no mapping has.
const strange = "qqqqqqqqqq"

// asked is what the decoder says of a value at a path of keys, where "[]" is a
// list's entry: nil if it says nothing of it.
func asked(t *testing.T, path []string, value any) *vm.Problem {
	t.Helper()
	field := ""
	for _, k := range slices.Backward(path) {
		if k == "[]" {
			value = []any{value}
			continue
		}
		value = map[string]any{k: value}
	}
	for _, k := range append(slices.Clone(path), strange) {
		switch {
		case k == "[]":
			field += "[0]"
		case field == "":
			field = k
		default:
			field += "." + k
		}
	}
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	_, problems := config.Parse("/x/a.json", text)
	for _, p := range problems {
		if p.Field != "" && (p.Field == field || strings.HasPrefix(field, p.Field+".") || strings.HasPrefix(field, p.Field+"[")) {
			return &p
		}
	}
	return nil
}

const unknownKey = "there is no such key"

// keysBelow asks the decoder itself which keys a path has, and goes down.
func keysBelow(t *testing.T, path []string) []string {
	t.Helper()
	p := asked(t, path, map[string]any{strange: map[string]any{}})
	switch {
	case p != nil && p.Message == unknownKey:
		known, ok := strings.CutPrefix(p.Hint, "the keys here are ")
		if !ok {
			return []string{dotted(path)} // a mapping without keys
		}
		var out []string
		for k := range strings.SplitSeq(known, ", ") {
			out = append(out, keysBelow(t, append(slices.Clone(path), k))...)
		}
		return out
	case p == nil || strings.HasSuffix(p.Field, strange):
		named := append(slices.Clone(path), strange) // any name is a key here
		if q := asked(t, named, map[string]any{strange: 1}); q != nil && q.Message == unknownKey {
			return keysBelow(t, named)
		}
		return []string{dotted(named)}
	case len(path) > 0 && path[len(path)-1] != "[]":
		entry := append(slices.Clone(path), "[]")
		if q := asked(t, entry, map[string]any{strange: 1}); q != nil && q.Message == unknownKey {
			return keysBelow(t, entry)
		}
	}
	return []string{dotted(path)}
}

func dotted(path []string) string {
	s := strings.ReplaceAll(strings.Join(path, "."), ".[]", "[]")
	return strings.ReplaceAll(s, strange, "NAME")
}

// documented are the keys in the tables of docs/vm-file.md, with their default.
func documented(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, row := range readPage(t, "docs/vm-file.md").table("") {
		if len(row) != 4 {
			continue // the tables of keys have four columns
		}
		for _, m := range codeSpan.FindAllStringSubmatch(row[0], -1) {
			if _, twice := out[m[1]]; twice {
				t.Errorf("docs/vm-file.md has the key %s twice", m[1])
			}
			out[m[1]] = strings.Trim(row[2], "`")
		}
	}
	return out
}

func TestEveryKeyIsDocumented(t *testing.T) {
	keys, told := keysBelow(t, nil), documented(t)
	if len(keys) < 40 {
		t.Fatalf("the decoder names only %d keys: %q", len(keys), keys)
	}
	for _, k := range keys {
		if _, ok := told[k]; !ok {
			t.Errorf("docs/vm-file.md lacks %s", k)
		}
	}
	for k := range told {
		if !slices.Contains(keys, k) {
			t.Errorf("docs/vm-file.md has %s, which the decoder does not know", k)
		}
	}
}

const leastFile = "version: 1\nhypervisor: qemu\nboot: {kernel: /k}\n"

func TestDefaultsAreDocumented(t *testing.T) {
	s, problems := config.Parse("/x/name.yaml", []byte("version: 1\nhypervisor: qemu\nboot: {kernel: /k}\n"+
		"disks: [{path: /d}]\ninterfaces: [{id: t}]\nshares: [{tag: a, source: /s}]\n"))
	if s == nil {
		t.Fatal(problems)
	}
	told := documented(t)
	for key, value := range map[string]any{
		"cpus": s.CPUs, "memory": fmt.Sprintf("%dMiB", s.Memory>>20), "console": s.Console.Mode, "guest.systemd": s.Guest.Systemd,
		"notify": s.Notify, "stop-timeout": s.StopTimeout, "autostart": s.Autostart,
		"qemu.machine": s.QEMU.Machine, "qemu.accel": s.QEMU.Accel, "disks[].format": s.Disks[0].Format,
		"disks[].readonly": s.Disks[0].ReadOnly, "interfaces[].type": s.Interfaces[0].Type, "shares[].proto": s.Shares[0].Proto,
		"shares[].readonly": s.Shares[0].ReadOnly, "watchdog": s.Watchdog, "start-timeout": strings.TrimSuffix(s.StartTimeout.String(), "0s"),
	} {
		if told[key] != fmt.Sprint(value) {
			t.Errorf("docs/vm-file.md says that %s is %q if nothing is said, it is %v", key, told[key], value)
		}
	}
	if want := config.DefaultUnit("NAME"); told["unit"] != want {
		t.Errorf("docs/vm-file.md says that unit is %q, it is %s", told["unit"], want)
	}
	_, problems = config.Parse("/x/a.yaml", []byte("cpus: 1\n"))
	missing := map[string]bool{}
	for _, p := range problems {
		missing[p.Field] = p.Message == "this key is missing"
	}
	for key, value := range told {
		if inList := strings.ContainsAny(key, "[") || key == "vsock.cid"; !inList && (value == "required") != missing[key] {
			t.Errorf("docs/vm-file.md says of %s %q; is it missed where it is not: %v", key, value, missing[key])
		}
	}
}

// What the page calls refused is refused.
func TestWhatIsRefusedIsRefused(t *testing.T) {
	if _, problems := config.Parse("/x/a.yaml", []byte(leastFile+"qemu: {machine: microvm}\n")); len(problems) == 0 {
		t.Error("the machine microvm is not refused")
	}
}

var sizes = regexp.MustCompile(`[0-9][0-9,]*`)

// The figures of docs/hypervisors.md are those of the driver.
func TestChannelsAreDocumented(t *testing.T) {
	s, problems := config.Parse("/x/a.yaml", []byte(leastFile))
	if s == nil {
		t.Fatal(problems)
	}
	offers := qemu.New(qemu.Options{}).Offers(s, hypervisor.Info{})
	rows := readPage(t, "docs/hypervisors.md").table("What it carries")
	if len(rows) != len(offers) {
		t.Fatalf("docs/hypervisors.md has %d channels, the driver %d", len(rows), len(offers))
	}
	hundreds := offers[0].TotalMax / 100 * 100
	for i, want := range [][]string{
		{fmt.Sprintf("%d,%03d", hundreds/1000, hundreds%1000), "512"},
		{fmt.Sprint(offers[1].Items), fmt.Sprint(offers[1].ItemMax >> 20), fmt.Sprint(offers[1].NameMax)},
	} {
		if got := sizes.FindAllString(rows[i][1], -1); len(got) < len(want) || !slices.Equal(got[:len(want)], want) {
			t.Errorf("docs/hypervisors.md gives %s %q, the driver %q", rows[i][0], got, want)
		}
		if need := strings.Fields(offers[i].Needs)[0]; !strings.Contains(rows[i][2], need) {
			t.Errorf("docs/hypervisors.md: %s needs %s", rows[i][0], need)
		}
	}
}

func TestChannelsOfCloudHypervisorAreDocumented(t *testing.T) {
	s, problems := config.Parse("/x/a.yaml", []byte(leastFile))
	if s == nil {
		t.Fatal(problems)
	}
	offers := cloudhypervisor.New(cloudhypervisor.Options{}).Offers(s, hypervisor.Info{Version: "53.0.0"})
	rows := readPage(t, "docs/hypervisors.md").table("What cloud-hypervisor carries")
	if len(rows) != 1 || len(offers) != 1 {
		t.Fatalf("docs/hypervisors.md has %d channels, the driver %d", len(rows), len(offers))
	}
	got := sizes.FindAllString(rows[0][1], -1)
	if want := append([]string{fmt.Sprint(offers[0].Items)}, sizes.FindAllString(offers[0].Why, -1)...); !slices.Equal(got, want) {
		t.Errorf("docs/hypervisors.md gives %q, the driver %q", got, want)
	}
}

// Every YAML block is a VM's file or the host's, whole, and without a problem.
func TestYAMLBlocksAreFiles(t *testing.T) {
	for _, p := range pages(t) {
		for _, b := range p.ofLang("yaml") {
			if b.isHostFile() {
				if h, problems := config.ParseHost(hostFile, []byte(b.text())); h == nil {
					t.Errorf("%s: %v", b.where, problems)
				}
				continue
			}
			for _, problem := range second(config.Parse("/x/test-vm.yaml", []byte(b.text()))) {
				t.Errorf("%s: %v (%s)", b.where, problem.Error(), problem.Hint)
			}
		}
	}
}

func second(_ *vm.Spec, problems vm.Problems) vm.Problems { return problems }
