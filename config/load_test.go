// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/vmcred/vmcred/vm"
)

// whole is what testdata/test-vm.yaml says.
func whole() *vm.Spec {
	return &vm.Spec{
		Name: "test-vm", Hypervisor: "cloud-hypervisor", CPUs: 2, Memory: 1 << 30,
		Boot: vm.Boot{
			Kernel: "/var/lib/vmcred/images/demo/vmlinuz", Initrd: "/var/lib/vmcred/images/demo/initrd",
			Cmdline: "console=ttyS0",
		},
		Console:    vm.Console{Mode: vm.ConsoleStdout},
		Guest:      vm.Guest{Systemd: 257, Units: []string{"/var/lib/vmcred/images/demo/units"}},
		Notify:     vm.NotifyGuest,
		Disks:      []vm.Disk{{Path: "/var/lib/vmcred/images/data.img", Format: "raw", Serial: "data"}},
		Interfaces: []vm.Interface{{Type: "tap", ID: "vm-test", MAC: "02:00:00:01:01:01"}},
		Shares:     []vm.Share{{Tag: "ro-store", Source: "/nix/store", Proto: "virtiofs", ReadOnly: true}},
		Vsock:      &vm.Vsock{CID: 3}, Autostart: true, Unit: "vmcred@test-vm.service",
		StartTimeout: 3 * time.Minute, StopTimeout: 15 * time.Second,
		QEMU: vm.QEMU{Machine: "q35", Accel: "auto"},
		Credentials: []vm.Credential{
			{Host: "host-api-key", Guest: "HOST_API_KEY", Source: vm.Source{Kind: vm.SourceVar, Path: "test-vm-secrets/api-key"}},
			{Host: "host-db-password", Guest: "HOST_DB_PASSWORD", Source: vm.Source{Kind: vm.SourceFile, Path: "/run/secrets/db-password"}},
			{Host: "host-jwt-secret", Guest: "HOST_JWT_SECRET", Source: vm.Source{Kind: vm.SourceUnit}},
			{Host: "host-license", Guest: "HOST_LICENSE", Source: vm.Source{Kind: vm.SourceEncrypted, Path: "/etc/credstore.encrypted/license"}},
			{Host: "host-tls-key", Guest: "TLS_KEY", Source: vm.Source{Kind: vm.SourceFile, Path: "/run/secrets/tls"}},
		},
		Static: []vm.Static{{Name: "CLUSTER", Value: "example-host"}, {Name: "ENVIRONMENT", Value: "test"}},
	}
}

// private copies a file of testdata to where nobody else can write, which a
// checkout need not be.
func private(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path := filepath.Join(dir, name)
	for d := dir; d != filepath.Dir(os.TempDir()) && d != os.TempDir(); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.WriteFile(path, text, 0o600), os.Chmod(path, 0o600)); err != nil {
		t.Fatal(err)
	}
	return path
}

var noPos = cmpopts.IgnoreTypes(vm.Pos{})

func TestWholeFile(t *testing.T) {
	file := private(t, "test-vm.yaml")
	spec, problems := Load(file)
	if len(problems.Fatal()) > 0 {
		t.Fatal(problems)
	}
	want := whole()
	want.File = file
	if diff := cmp.Diff(want, spec, noPos, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("the file reads as (-want +got):\n%s", diff)
	}
	if got, want := spec.Credentials[0].Pos, (vm.Pos{File: spec.File, Line: 18, Column: 3}); got != want {
		t.Errorf("host-api-key stands at %v, want %v", got, want)
	}
	if got, want := spec.Static[0].Pos, (vm.Pos{File: spec.File, Line: 25, Column: 3}); got != want {
		t.Errorf("CLUSTER stands at %v, want %v", got, want)
	}
}

const least = "version: 1\nhypervisor: qemu\nboot: {kernel: vmlinuz}\n"

const (
	forCloud = "version: 1\nhypervisor: cloud-hypervisor\nboot: {kernel: vmlinuz}\n"
	ready    = least + "guest: {systemd: 254}\nvsock: {cid: 3}\n"
)

func TestDefaultsAndRelativePaths(t *testing.T) {
	spec, problems := Parse("/etc/vmcred/vms/a.yaml", []byte(least+"disks: [{path: ../d.qcow2}]\nconsole: off\n"))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	want := &vm.Spec{
		Name: "a", Hypervisor: "qemu", CPUs: 1, Memory: 512 << 20, Boot: vm.Boot{Kernel: "/etc/vmcred/vms/vmlinuz"},
		Console: vm.Console{Mode: vm.ConsoleOff}, Guest: vm.Guest{Systemd: 252}, Notify: vm.NotifyBoot,
		Disks: []vm.Disk{{Path: "/etc/vmcred/d.qcow2", Format: "qcow2"}}, Unit: "vmcred@a.service",
		StartTimeout: 3 * time.Minute, StopTimeout: 15 * time.Second,
		QEMU: vm.QEMU{Machine: "q35", Accel: "auto"}, File: "/etc/vmcred/vms/a.yaml",
	}
	if diff := cmp.Diff(want, spec, noPos, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestReadyByDefault: the guest's own word where it can say it.
func TestReadyByDefault(t *testing.T) {
	for text, want := range map[string]vm.Notify{
		ready: vm.NotifyGuest, ready + "notify: boot\n": vm.NotifyBoot,
		least + "guest: {systemd: 253}\nvsock: {cid: 3}\n":               vm.NotifyBoot,
		least + "guest: {systemd: 254}\n":                                vm.NotifyBoot,
		least + "vsock: {cid: 3}\n":                                      vm.NotifyBoot,
		ready + "notify: boot\nstatic: {vmm.notify_socket: vsock:2:1}\n": vm.NotifyBoot,
	} {
		if spec, problems := Parse("/x/a.yaml", []byte(text)); len(problems) > 0 || spec.Notify != want {
			t.Errorf("%s: %v, want %s", text, problems, want)
		}
	}
	_, problems := Parse("/x/a.yaml", []byte(least+"start-timeout: 1m\n"))
	if len(problems) != 1 || problems[0].Severity != vm.Warning || problems[0].Field != "start-timeout" {
		t.Errorf("a limit that nothing waits for: %+v", problems)
	}
}

func TestFirmware(t *testing.T) {
	for word, want := range map[string]string{"bios": vm.FirmwareBIOS, "./bios": "/x/bios", "/usr/share/OVMF/OVMF_CODE.fd": "/usr/share/OVMF/OVMF_CODE.fd"} {
		spec, problems := Parse("/x/a.yaml", []byte("version: 1\nhypervisor: qemu\nboot: {firmware: "+word+"}\ndisks: [{path: a.qcow2}]\n"))
		if len(problems) > 0 || spec.Boot != (vm.Boot{Firmware: want}) {
			t.Errorf("%s: %+v, %v", word, spec, problems)
		}
	}
}

// TestExtra: arguments and a JSON patch as they are written.
func TestExtra(t *testing.T) {
	spec, problems := Parse("/x/a.yaml", []byte(least+"qemu: {extra: [-device, \"virtio-balloon-pci,id=a\", \"\"]}\n"))
	if len(problems) > 0 || !slices.Equal(spec.QEMU.Extra, []string{"-device", "virtio-balloon-pci,id=a", ""}) {
		t.Errorf("%+v, %v", spec, problems)
	}
	for text, want := range map[string]string{
		"{}": "{}",
		"{b: 1, a: -1.50e+3, C: true, d: ~, e: [x, [], {}, null]}":      `{"b":1,"a":-1.50e+3,"C":true,"d":null,"e":["x",[],{},null]}`,
		"{Ä: \"\\\"\\n😀<\", n: 18446744073709551615, s: \"1\", t: yes}": `{"Ä":"\"\u000a😀<","n":18446744073709551615,"s":"1","t":"yes"}`,
	} {
		spec, problems := Parse("/x/a.yaml", []byte(forCloud+"cloud-hypervisor: {extra: "+text+"}\n"))
		if len(problems) > 0 || string(spec.CloudHypervisor.Extra) != want {
			t.Errorf("%s: %v, want %s", text, problems, want)
		} else if !json.Valid(spec.CloudHypervisor.Extra) {
			t.Errorf("%s is no JSON", spec.CloudHypervisor.Extra)
		}
	}
}

// TestFiveAtOnce is the promise that one run shows everything that is wrong.
func TestFiveAtOnce(t *testing.T) {
	file := private(t, "five-wrong.yaml")
	spec, problems := Load(file)
	if spec != nil {
		t.Error("a spec in spite of the problems")
	}
	f := file + ":"
	want := []string{
		f + `2:13: hypervisor: "quemu" is not known here` + "\n\tdid you mean qemu?",
		f + `4:1: memroy: there is no such key` + "\n\tdid you mean memory?",
		f + `5:27: boot.initrd: this must be a string, not a number` + "\n\tput it in quotes",
		f + `6:7: cpus: 0 is out of range: it must be 1 to 1024` + "\n\t",
		f + `9:24: credentials.host-jwt.fil: there is no such key` + "\n\tdid you mean file?",
	}
	var got []string
	for _, p := range problems {
		got = append(got, p.Error()+"\n\t"+p.Hint)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestRefused lists what a person can get wrong, one thing a file: name.ext,
// content, and what the only message must contain.
func TestRefused(t *testing.T) {
	for _, c := range []struct{ what, text, want string }{
		{"empty", "", "the file is empty"},
		{"comment only", "# nothing\n", "the file is empty"},
		{"no mapping", "- a\n", "must be a mapping"},
		{"syntax", "version: 1\nboot: {kernel: x\n", "this is not YAML"},
		{"tab", "version: 1\nboot:\n\tkernel: x\n", "not tabs"},
		{"two documents", least + "---\n" + least, "more than one document"},
		{"anchor", least + "static: {A: &x 1}\n", "anchors (&name) are not read"},
		{"alias", least + "static: {A: *x}\n", "this is not YAML"},
		{"tag", least + "static: {A: !!binary aGk=}\n", "tags (!name) are not read"},
		{"merge", least + "qemu: {<<: {accel: tcg}}\n", "merge keys"},
		{"twice", least + "cpus: 1\ncpus: 2\n", "here twice, first in line 4"},
		{"version", "version: 2\nhypervisor: qemu\nboot: {kernel: x}\n", "must be 1 to 1"},
		{"no version", "hypervisor: qemu\nboot: {kernel: x}\n", "version: this key is missing"},
		{"no kernel", "version: 1\nhypervisor: qemu\n", "boot.kernel: this key is missing"},
		{"boot null", "version: 1\nhypervisor: qemu\nboot:\n", "this key has no value"},
		{"quoted cpus", least + "cpus: \"2\"\n", "take the quotes away"},
		{"octal", least + "cpus: 010\n", "plain decimal"},
		{"size", least + "memory: 1G\n", "did you mean 1GiB?"},
		{"size MB", least + "memory: 512 mb\n", "did you mean 512MiB?"},
		{"small", least + "memory: 512\n", "did you mean 512MiB?"},
		{"smaller than any", least + "memory: 512KiB\n", "write it in MiB"},
		{"huge", least + "memory: 9223372036854775807GiB\n", "more than any machine"},
		{"page", least + "memory: 1048577\n", "page size"},
		{"duration", least + "stop-timeout: 15\n", "did you mean 15s?"},
		{"long stop", least + "stop-timeout: 2h\n", "between 0s and 1h"},
		{"console", least + "console: stdou\n", "did you mean stdout?"},
		{"console path", least + "console: log.txt\n", "a file's absolute path"},
		{"bool", least + "autostart: yes\n", "write true or false"},
		{"notify", least + "notify: guest\nvsock: {cid: 3}\n", "252 (assumed: the file does not say) cannot say that it is ready (254 is the first"},
		{"notify too old", least + "notify: guest\nvsock: {cid: 3}\nguest: {systemd: 253}\n", "systemd 253 cannot say"},
		{"notify vsock", least + "notify: guest\nguest: {systemd: 255}\n", "over vsock, and there is none"},
		{"cid", least + "vsock: {cid: 2}\n", "out of range"},
		{"no cid", least + "vsock: {}\n", "vsock.cid: this key is missing"},
		{"mac", least + "interfaces: [{id: a, mac: \"01:00:00:00:00:01\"}]\n", "group address"},
		{"mac form", least + "interfaces: [{id: a, mac: \"02-00-00-00-00-01\"}]\n", "not a MAC"},
		{"tap", least + "interfaces: [{id: sixteen-bytes-xx}]\n", "the kernel takes 15"},
		{"bridge", least + "interfaces: [{id: a, bridge: sixteen-bytes-xx}]\n", "interfaces[0].bridge: \"sixteen-bytes-xx\" is 16 bytes long; the kernel takes 15"},
		{"no bridge", least + "interfaces: [{id: a, bridge: \"\"}]\n", "interfaces[0].bridge: this must not be empty"},
		{"bridge path", least + "interfaces: [{id: a, bridge: ../a}]\n", "cannot be a network device's name"},
		{"bridge itself", least + "interfaces: [{id: a, bridge: a}]\n", "a tap cannot be attached to itself"},
		{"pattern", least + "interfaces: [{id: a%d, isolated: true}]\n", "cannot be the name of a tap that is made"},
		{"isolated", least + "interfaces: [{id: a, isolated: br0}]\n", "interfaces[0].isolated"},
		{"tap twice", least + "interfaces: [{id: a}, {id: a}]\n", "interfaces[0] has the same tap"},
		{"serial", least + "disks: [{path: a, serial: 123456789012345678901}]\n", "must be a string"},
		{"long serial", least + "disks: [{path: a, serial: a12345678901234567890}]\n", "virtio-blk carries 20"},
		{"machine", least + "qemu: {machine: microvm}\n", "drops them"},
		{"firmware and kernel", "version: 1\nhypervisor: qemu\nboot: {kernel: x, firmware: bios}\ndisks: [{path: a}]\n", "boot.kernel: a firmware takes this from the boot loader"},
		{"firmware and cmdline", "version: 1\nhypervisor: qemu\nboot: {firmware: bios, cmdline: quiet}\ndisks: [{path: a}]\n", "boot.cmdline: a firmware takes this"},
		{"firmware alone", "version: 1\nhypervisor: qemu\nboot: {firmware: bios}\n", "add disks: [{path: PATH}]"},
		{"long start", least + "start-timeout: 61m\n", "between 1s and 1h"},
		{"no start", least + "start-timeout: 0s\n", "between 1s and 1h"},
		{"watchdog", least + "watchdog: on\n", "write true or false"},
		{"share's user", least + "shares: [{tag: a, source: /s, user: \"a b\"}]\n", "is no user's name"},
		{"argument", least + "qemu: {extra: [-snapshot, 1]}\n", "qemu.extra[1]: this must be a string, not a number"},
		{"argument's NUL", least + "qemu: {extra: [\"a\\0b\"]}\n", "a NUL ends an argument"},
		{"extra list", forCloud + "cloud-hypervisor: {extra: [1]}\n", "extra: this must be a mapping"},
		{"extra hex", forCloud + "cloud-hypervisor: {extra: {a: [0x1F]}}\n", "cloud-hypervisor.extra.a[0]: this is no number that JSON has"},
		{"extra inf", forCloud + "cloud-hypervisor: {extra: {a: .inf}}\n", "this is no number that JSON has"},
		{"extra twice", forCloud + "cloud-hypervisor: {extra: {a: {b: 1, b: 2}}}\n", "extra.a.b: this key is here twice"},
		{"own socket", ready + "static: {vmm.notify_socket: \"vsock:2:1\"}\n", "static.\"vmm.notify_socket\": the guest is told"},
		{"own socket, secret", ready + "credentials: {a: {as: vmm.notify_socket}}\n", "credentials.a: the guest is told"},
		{"own socket, string", ready + "oem-strings: [\"io.systemd.credential:vmm.notify_socket=vsock:2:1\"]\n", "oem-strings[0]: the guest is told"},
		{"home", "version: 1\nhypervisor: qemu\nboot: {kernel: ~/vmlinuz}\n", "~ is not a directory"},
		{"cmdline", "version: 1\nhypervisor: qemu\nboot: {kernel: x, cmdline: \"a\\nb\"}\n", "one line"},
		{"no import", "version: 1\nhypervisor: qemu\nboot: {kernel: x, cmdline: \"a systemd.import-credentials='Off'\"}\nstatic: {A: x}\n", "takes no credentials"},
		{"unit", least + "unit: vmcred@.service\n", "is a template"},
		{"unit form", least + "unit: ../x.service\n", "not the name of a service"},
		{"two sources", least + "credentials: {a: {file: /x, var: g/f}}\n", "more than one source: file and var"},
		{"sops key", least + "credentials: {a: {sops: {file: /x}}}\n", "key: this key is missing"},
		{"var", least + "credentials: {a: {var: api-key}}\n", "GENERATOR/FILE"},
		{"var, three", least + "credentials: {a: {var: a/b/c}}\n", "GENERATOR/FILE"},
		{"var, up", least + "credentials: {a: {var: ../x}}\n", "GENERATOR/FILE"},
		{"var, hidden", least + "credentials: {a: {var: .versions/x}}\n", "GENERATOR/FILE"},
		{"var, option", least + "credentials: {a: {var: a/-x}}\n", "GENERATOR/FILE"},
		{"var, line", least + "credentials: {a: {var: \"a/x\\n\"}}\n", "GENERATOR/FILE"},
		{"var, long", least + "credentials: {a: {var: a/" + strings.Repeat("x", 256) + "}}\n", "GENERATOR/FILE"},
		{"reserved", least + "credentials: {vmcred.transfer-list: {}}\n", "credentials.\"vmcred.transfer-list\": this name is vmcred's own"},
		{"null credential", least + "credentials: {a: }\n", "or {} if"},
		{"name", least + "credentials: {\"a/b\": {}}\n", `"a/b"`},
		{"as", least + "credentials: {a: {as: \"A=B\"}}\n", "has a ="},
		{"two become one", least + "credentials: {host-a: {}, host_a: {}}\n", "becomes HOST_A in the guest, and so does"},
		{"static clash", least + "credentials: {a: {}}\nstatic: {A: x}\n", "also the guest's name of the secret a"},
		{"static null", least + "static: {A: }\n", "must be one value"},
		{"static list", least + "static: {A: [x]}\n", "must be one value"},
		{"oem empty", least + "oem-strings: [\"\"]\n", "ends the SMBIOS structure"},
		{"oem nul", least + "oem-strings: [\"a\\0b\"]\n", "NUL"},
		{"oem clash", least + "static: {A: x}\noem-strings: [\"io.systemd.credential:A=y\"]\n", "once more"},
		{"foreign key", least + "firecracker: {x: 1}\n", "no such key"},
	} {
		t.Run(c.what, func(t *testing.T) {
			spec, problems := Parse("/x/a.yaml", []byte(c.text))
			problems = problems.Fatal()
			if spec != nil || len(problems) != 1 {
				t.Fatalf("spec %v, problems:\n%v", spec != nil, problems)
			}
			p := problems[0]
			if !strings.Contains(p.Error()+" "+p.Hint, c.want) {
				t.Errorf("%v (%s)\ndoes not say %q", p, p.Hint, c.want)
			}
			if p.Pos.File == "" {
				t.Error("no place")
			}
		})
	}
}

// TestNoValueInMessages puts a secret wherever a person may put one.
func TestNoValueInMessages(t *testing.T) {
	const s = "hunter2hunter2"
	for _, cred := range []string{
		s, "[" + s + "]", "{value: " + s + "}", "{file: [" + s + "]}", "{sops: " + s + "}", "{var: " + s + "}",
		"{allow-empty: " + s + "}", "{text: " + s + "}", "{encrypted: {a: " + s + "}}",
	} {
		_, problems := Parse("/x/a.yaml", []byte(least+"credentials: {host-a: "+cred+"}\n"))
		if len(problems.Fatal()) != 1 {
			t.Errorf("%s: %d problems: %v", cred, len(problems), problems)
		}
		for _, p := range problems {
			if strings.Contains(p.Error()+p.Hint, s) {
				t.Errorf("the message shows the value: %v (%s)", p, p.Hint)
			}
		}
	}
}

func TestStaticAsWritten(t *testing.T) {
	spec, problems := Parse("/x/a.yaml", []byte(least+"static: {A: 8080, B: 1.10, C: yes, D: true, E: 0x1F, F: \"\", G: 2001-01-01}\n"))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	var got []string
	for _, s := range spec.Static {
		got = append(got, s.Name+"="+s.Value)
	}
	if diff := cmp.Diff([]string{"A=8080", "B=1.10", "C=yes", "D=true", "E=0x1F", "F=", "G=2001-01-01"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestNames(t *testing.T) {
	for name, ok := range map[string]bool{
		"a": true, "test-vm": true, "a234567890123456789012b": true, "9": true,
		"a234567890123456789012bc": false, "": false, "-a": false, "a-": false, "-": false, "A": false, "a_b": false, "ä": false,
	} {
		if err := CheckName(name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, path := range []string{"/x/a.yml", "/x/a", "/x/A.yaml", "/x/.yaml", "/x/-.json"} {
		if _, problems := Parse(path, []byte(least)); len(problems.Fatal()) != 1 {
			t.Errorf("%s: %v", path, problems)
		}
	}
}

func TestTooLarge(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.yaml")
	big := least + "#" + strings.Repeat("x", MaxSize)
	for size, ok := range map[int]bool{MaxSize: true, MaxSize + 1: false} {
		if err := os.WriteFile(path, []byte(big[:size]), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, problems := Load(path); (len(problems) == 0) != ok {
			t.Errorf("%d bytes: %v", size, problems)
		}
	}
}

// The word that keeps a guest from its credentials counts as systemd counts it.
func TestImportsNone(t *testing.T) {
	const word = "systemd.import_credentials"
	for cmdline, want := range map[string]bool{
		"": false, "quiet " + word + "=no": true, word + "=0 quiet": true, "\"" + word + "=FALSE\"": true,
		word: false, word + "=yes": false, word + "=no " + word + "=1": false, "x" + word + "=no": false,
	} {
		if got := importsNone(cmdline); got != want {
			t.Errorf("%q: %v", cmdline, got)
		}
	}
	if _, problems := Parse("/x/a.yaml", []byte("version: 1\nhypervisor: qemu\nboot: {kernel: x, cmdline: "+word+"=no}\noem-strings: [asset tag 7]\n")); len(problems) > 0 {
		t.Errorf("without credentials: %v", problems)
	}
}

// A path as it stands in messages and manuals is no key: the hint shows how it is written.
func TestDottedKey(t *testing.T) {
	_, problems := Parse("/x/a.yaml", []byte(least+"boot.firmware: bios\nnothing.here: 1\n"))
	if len(problems) != 2 || problems[0].Hint != "write boot: {firmware: …}" || !strings.HasPrefix(problems[1].Hint, "the keys here are ") {
		t.Errorf("%v", problems)
	}
}
