// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/vm"
)

// TestRandom: a specification, written as a command line, is read as it was.
func TestRandom(t *testing.T) {
	for n := range uint64(3000) {
		r := rand.New(rand.NewPCG(n, 2))
		spec := randomSpec(r)
		argv := write(r, spec)
		c, problems := Parse(argv, "/w")
		if c == nil {
			t.Fatalf("seed %d: %q: %v", n, argv, problems)
		}
		if !reflect.DeepEqual(c.Spec, spec) {
			t.Fatalf("seed %d: %q:\n%+v\nextra %s\nwant\n%+v\nextra %s", n, argv, *c.Spec, c.Spec.CloudHypervisor.Extra, *spec, spec.CloudHypervisor.Extra)
		}
	}
}

func some(r *rand.Rand) int { return r.IntN(3) }

// name is text of all kinds.
func name(r *rand.Rand) string {
	const letters = `abcXYZ019 ,[]"=:ü\'-`
	all := []rune(letters)
	out := []rune{'n'}
	for range r.IntN(8) {
		out = append(out, all[r.IntN(len(all))])
	}
	return string(append(out, 'n'))
}

func randomSpec(r *rand.Rand) *vm.Spec {
	s := &vm.Spec{
		Hypervisor: cloudHypervisor, Notify: vm.NotifyBoot, CPUs: 1 + r.IntN(8), Memory: int64(1+r.IntN(4096)) << 20, Watchdog: r.IntN(2) == 0,
		Boot:    vm.Boot{Kernel: "/" + name(r), Initrd: "/" + name(r), Cmdline: " " + name(r)},
		Console: vm.Console{Mode: []vm.ConsoleMode{vm.ConsoleOff, vm.ConsoleStdout}[r.IntN(2)]},
	}
	if r.IntN(2) == 0 {
		s.MaxCPUs = s.CPUs + 1 + r.IntN(8)
	}
	if r.IntN(4) == 0 {
		s.Boot = vm.Boot{Firmware: "/" + name(r)}
	}
	if r.IntN(4) == 0 {
		s.Console = vm.Console{Mode: vm.ConsoleFile, Path: "/" + name(r)}
	}
	for range some(r) {
		s.Disks = append(s.Disks, vm.Disk{
			Path: "/" + name(r), Format: []string{"", "raw", "qcow2", "vhd", "vhdx"}[r.IntN(5)],
			ReadOnly: r.IntN(2) == 0, Direct: r.IntN(2) == 0, Queues: r.IntN(4), Serial: []string{"", name(r)}[r.IntN(2)],
		})
	}
	for i := range some(r) {
		nic := vm.Interface{Type: "tap", ID: fmt.Sprintf("tap%d", i), MAC: []string{"", "02:00:00:00:aB:01"}[r.IntN(2)], Pairs: []int{0, 2, 3}[r.IntN(3)]}
		if r.IntN(2) == 0 {
			nic.ID = ""
			for range max(1, nic.Pairs) {
				nic.FDs = append(nic.FDs, 3+r.IntN(1000))
			}
		}
		s.Interfaces = append(s.Interfaces, nic)
	}
	for range some(r) {
		s.Shares = append(s.Shares, vm.Share{Tag: name(r), Proto: "virtiofs", Socket: "/" + name(r)})
	}
	if r.IntN(2) == 0 {
		s.Vsock = &vm.Vsock{CID: 3 + r.Uint32N(1<<31), Socket: "/" + name(r)}
	}
	for range some(r) {
		s.Devices = append(s.Devices, "/sys/bus/pci/devices/"+name(r))
	}
	for i := range some(r) {
		s.Static = append(s.Static, vm.Static{Name: fmt.Sprintf("S%d", i), Value: name(r)})
	}
	for range some(r) {
		s.OEMStrings = append(s.OEMStrings, plain(name(r)))
	}
	if len(s.Static)+len(s.OEMStrings) > 0 {
		s.CloudHypervisor.Extra = []byte(`{"platform":{}}`)
	}
	return s
}

// plain is text that a string on the command line can have: quotes stay in it, and
// the brackets at its ends do not.
func plain(s string) string {
	return strings.NewReplacer(",", "", `"`, "", "[", "", "]", "").Replace(s)
}

// quoted is text as a value.
func quoted(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }

func onOff(b bool) string { return map[bool]string{true: "on", false: "off"}[b] }

// write is the command line of a specification. What is empty is left out.
func write(r *rand.Rand, s *vm.Spec) []string {
	groups := [][]string{
		{"--cpus", join("boot", fmt.Sprint(s.CPUs), "max", number(s.MaxCPUs))},
		{"--memory", join("size", fmt.Sprint(s.Memory), "shared", onOff(len(s.Shares) > 0))},
		{"--console", "off"},
		{"--seccomp", "true"},
		{"--serial", map[vm.ConsoleMode]string{vm.ConsoleOff: "off", vm.ConsoleStdout: "tty", vm.ConsoleFile: "file=" + quoted(s.Console.Path)}[s.Console.Mode]},
	}
	if s.Watchdog {
		groups = append(groups, []string{"--watchdog"})
	}
	if s.Boot.Firmware != "" {
		groups = append(groups, []string{"--firmware", s.Boot.Firmware})
	} else {
		groups = append(groups, []string{"--kernel", s.Boot.Kernel}, []string{"--initramfs=" + s.Boot.Initrd}, []string{"--cmdline", s.Boot.Cmdline})
	}
	if s.Vsock != nil {
		groups = append(groups, []string{"--vsock", join("cid", fmt.Sprint(s.Vsock.CID), "socket", quoted(s.Vsock.Socket))})
	}
	var disks, nics, shares, devices []string
	for _, d := range s.Disks {
		disks = append(disks, join("path", quoted(d.Path), "image_type", d.Format, "readonly", onOff(d.ReadOnly), "direct", onOff(d.Direct),
			"num_queues", number(d.Queues), "serial", quoted(d.Serial)))
	}
	for _, n := range s.Interfaces {
		nics = append(nics, join("tap", n.ID, "mac", n.MAC, "num_queues", number(2*n.Pairs), "fd", strings.ReplaceAll(strings.Trim(fmt.Sprint(n.FDs), "[]"), " ", ",")))
		if len(n.FDs) > 0 {
			nics[len(nics)-1] = join("mac", n.MAC, "num_queues", number(2*n.Pairs), "fd", strings.ReplaceAll(fmt.Sprint(n.FDs), " ", ","))
		}
	}
	for _, f := range s.Shares {
		shares = append(shares, join("tag", quoted(f.Tag), "socket", quoted(f.Socket)))
	}
	for _, d := range s.Devices {
		devices = append(devices, join("path", quoted(d)))
	}
	for flag, list := range map[string][]string{"--disk": disks, "--net": nics, "--fs": shares, "--device": devices} {
		if len(list) > 0 {
			groups = append(groups, append([]string{flag}, list...))
		}
	}
	var oem []string
	for _, st := range s.Static {
		oem = append(oem, "io.systemd.credential.binary:"+st.Name+"="+base64.StdEncoding.EncodeToString([]byte(st.Value)))
	}
	if oem = append(oem, s.OEMStrings...); len(oem) > 0 {
		groups = append(groups, []string{"--platform", "oem_strings=[" + strings.Join(oem, ",") + "]"})
	}
	argv := []string{"/bin/cloud-hypervisor"}
	r.Shuffle(len(groups), func(i, j int) { groups[i], groups[j] = groups[j], groups[i] })
	return append(argv, slices.Concat(groups...)...)
}

func number(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

func join(pairs ...string) string {
	var out []string
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" && pairs[i+1] != `""` {
			out = append(out, pairs[i]+"="+pairs[i+1])
		}
	}
	return strings.Join(out, ",")
}

// FuzzCloudHypervisor: no command line makes it fail, a specification is what
// it says it is, and no message holds what a credential's string does.
func FuzzCloudHypervisor(f *testing.F) {
	for _, n := range []string{"seed", "disks", "extraargs", "graphics", "hotplug-balloon-huge", "macvtap-multiqueue-pci", "no-vsock-no-oem", "ch35-repeated-flags"} {
		f.Add(strings.Join(golden(f, n)[1:], "\x1f"))
	}
	f.Add("--platform\x1foem_strings=[io.systemd.credential:A=SENTINEL")
	f.Add("--cpus\x1fboot=+1,topology=1:1:1:1\x1f-vv\x1f--net\x1ffd=[3-9]")
	f.Fuzz(func(t *testing.T, line string) {
		c, problems := Parse(append([]string{"cloud-hypervisor"}, strings.Split(line, "\x1f")...), "/w")
		if (c == nil) != (len(problems.Fatal()) > 0) {
			t.Fatalf("%v and %v", c, problems)
		}
		for _, p := range problems {
			if strings.Contains(line, "credential:A=SENTINEL") && strings.Contains(p.Error()+p.Hint, "SENTINEL") {
				t.Errorf("shown: %v", p)
			}
			for _, b := range []byte(p.Error()) {
				if b < ' ' || b == 0x7f {
					t.Errorf("a control character: %q", p.Error())
				}
			}
		}
		if c == nil {
			return
		}
		if c.Spec.CPUs < 0 || c.Spec.Memory < 0 || (c.Spec.Boot.Kernel == "") == (c.Spec.Boot.Firmware == "") {
			t.Errorf("%+v", c.Spec)
		}
		for _, d := range c.Spec.Disks {
			if !strings.HasPrefix(d.Path, "/") {
				t.Errorf("disk %q", d.Path)
			}
		}
	})
}
