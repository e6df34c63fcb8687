// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"reflect"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/vm"
)

// TestQEMUGolden: what a plan needs is taken, the rest is as it was, in order.
func TestQEMUGolden(t *testing.T) {
	argv := golden(t, "qemu")
	c, problems := Parse(argv, "/w")
	if c == nil {
		t.Fatal(problems)
	}
	s := c.Spec
	if s.Hypervisor != "qemu" || s.Name != "test-vm" || s.CPUs != 2 || s.Memory != 1<<30 || s.QEMU.Machine != "microvm" || s.QEMU.Accel != "kvm" ||
		!strings.HasSuffix(s.Boot.Kernel, "/bzImage") || !strings.HasSuffix(s.Boot.Initrd, "/initrd") || !strings.Contains(s.Boot.Cmdline, "regInfo=") ||
		s.Vsock == nil || s.Vsock.CID != 3 || c.APISocket != "/w/test-vm.sock" {
		t.Errorf("%+v %+v", *s, c)
	}
	taken := map[string]bool{"-name": true, "-M": true, "-m": true, "-smp": true, "-kernel": true, "-initrd": true, "-append": true, "-enable-kvm": true, "-qmp": true}
	want := []string{"-machine", "acpi=on,mem-merge=on,pcie=on,pic=off,pit=off,rtc=on,usb=off"}
	for i := 1; i < len(argv); i++ {
		switch w := argv[i]; {
		case w == "-enable-kvm":
		case taken[w] || w == "-device" && strings.HasPrefix(argv[i+1], "vhost-vsock"):
			i++
		default:
			want = append(want, w)
		}
	}
	if !reflect.DeepEqual(s.QEMU.Extra, want) {
		t.Errorf("%q\nwant\n%q", s.QEMU.Extra, want)
	}
}

func TestQEMU(t *testing.T) {
	for line, want := range map[string]string{
		"-smbios type=11,value=io.systemd.credential:A=hunter2":                "value= 1 is a credential",
		"-smbios type=11,value=a,value=io.systemd.credential.binary:A=hunter2": "value= 2 is a credential",
		"-smbios type=11,path=/x":                                              "path= is refused",
		"-smbios file=/x":                                                      "file= is refused",
		"-fw_cfg name=opt/io.systemd.credentials/A,string=hunter2":             "the credential A goes past",
		"-fw_cfg opt/io.systemd.credentials/A,file=/x":                         "the credential A goes past",
		"-append a~systemd.set_credential=A:hunter2":                           "carries a credential",
		"-readconfig /x":          "(-readconfig)",
		"-writeconfig /x":         "(-writeconfig)",
		"-D /x":                   "(-D)",
		"-d in_asm":               "(-d)",
		"-trace a":                "(-trace)",
		"-dump-vmstate /x":        "starts no VM",
		"-monitor stdio":          "(-monitor)",
		"-mon a":                  "(-mon)",
		"-gdb tcp::1":             "(-gdb)",
		"-s":                      "argument 1 (-s)",
		"-S":                      "argument 1 (-S)",
		"-qmp tcp:localhost:4444": "read the guest's memory",
		"-incoming tcp:0:1":       "(-incoming)",
		"-daemonize":              "(-daemonize)",
		"-vnc :0":                 "screen",
		"-mem-path /x":            "would be a file",
		"-object memory-backend-file,id=m,mem-path=/x":   "would be a file",
		"-object secret,id=s,data=hunter2":               "data= is refused",
		`-object {"qom-type":"secret","data":"hunter2"}`: "in JSON",
		"-iscsi user=a,password=hunter2":                 "password= is refused",
		"-machine q35,dump-guest-core=on":                "core dump",
		"-memory 1G":                                     "no such option",
		"--kernl /k":                                     "did you mean -kernel?",
		"-kernel":                                        "its argument is missing",
		"-m huge":                                        "huge is no size",
		"-smp many":                                      "cpus= many is no number",
		"-device vhost-vsock-pci,guest-cid=2":            "3 or more",
	} {
		c, problems := Parse(words("qemu-system-x86_64 "+line), "/w")
		if c != nil || !strings.Contains(said(problems), want) {
			t.Errorf("%s: %v, want %q", line, problems, want)
		}
		if strings.Contains(said(problems), "hunter") {
			t.Errorf("%s: a value is shown: %v", line, problems)
		}
	}
	for line, ok := range map[string]func(*vm.Spec) bool{
		"": func(s *vm.Spec) bool {
			return s.CPUs == 1 && s.Memory == 128<<20 && s.QEMU.Machine == "pc" && s.Boot.Firmware == vm.FirmwareBIOS
		},
		"--m 512 -smp 2,maxcpus=4 -machine type=q35,accel=kvm": func(s *vm.Spec) bool {
			return s.Memory == 512<<20 && s.CPUs == 2 && s.MaxCPUs == 4 && s.QEMU.Machine == "q35" && s.QEMU.Extra == nil
		},
		"-m size=2g,slots=2,maxmem=8G": func(s *vm.Spec) bool { return s.Memory == 2<<30 && len(s.QEMU.Extra) == 2 },
		"-m 1T":                        func(s *vm.Spec) bool { return s.Memory == 1<<40 },
		"-accel tcg disk.img -monitor none": func(s *vm.Spec) bool {
			return s.QEMU.Accel == "tcg" && reflect.DeepEqual(s.QEMU.Extra, []string{"disk.img", "-monitor", "none"})
		},
		"-smbios type=11,value=a,,b,value=io.systemd.credential:vmm.notify_socket=vsock-stream:2:1": func(s *vm.Spec) bool {
			return s.OEMStrings[0] == "a,b" && s.Static[0] == vm.Static{Name: "vmm.notify_socket", Value: "vsock-stream:2:1"}
		},
		"-smbios type=1,serial=x -fw_cfg name=opt/ovmf/x,string=y": func(s *vm.Spec) bool { return len(s.QEMU.Extra) == 4 },
	} {
		c, problems := Parse(words("qemu-kvm "+line), "/w")
		if c == nil || !ok(c.Spec) {
			t.Errorf("%s: %v %+v", line, problems, c)
		}
	}
}

// FuzzQEMU: no command line makes it fail, nor shows what a credential's string holds.
func FuzzQEMU(f *testing.F) {
	f.Add(strings.Join(golden(f, "qemu")[1:], "\x1f"))
	f.Add("-smbios\x1ftype=11,value=io.systemd.credential:A=SENTINEL\x1f-m\x1f1T")
	f.Fuzz(func(t *testing.T, line string) {
		c, problems := Parse(append([]string{"qemu-system-x86_64"}, strings.Split(line, "\x1f")...), "/w")
		if (c == nil) != (len(problems.Fatal()) > 0) {
			t.Fatalf("%v and %v", c, problems)
		}
		if strings.Contains(line, "credential:A=SENTINEL") && strings.Contains(said(problems), "SENTINEL") {
			t.Errorf("shown: %v", problems)
		}
		if c != nil && (c.Spec.Memory < 0 || c.Spec.CPUs < 0) {
			t.Errorf("%+v", c.Spec)
		}
	})
}
