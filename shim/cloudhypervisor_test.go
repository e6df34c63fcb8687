// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"strings"
	"testing"

	"github.com/vmcred/vmcred/vm"
)

const base = "cloud-hypervisor --kernel /k --console off"

// words are a command line, divided at spaces; ~ stands for a space within a word.
func words(line string) []string {
	list := strings.Fields(line)
	for i, w := range list {
		list[i] = strings.ReplaceAll(w, "~", " ")
	}
	return list
}

// said is all that the problems say, hints too.
func said(problems vm.Problems) string {
	var b strings.Builder
	for _, p := range problems {
		b.WriteString(p.Error() + "; " + p.Hint + "\n")
	}
	return b.String()
}

// TestRefused: each of these is refused, by the place of its argument and by name.
func TestRefused(t *testing.T) {
	for line, want := range map[string]string{
		"-v":                                    "argument 5 (-v): this is refused: cloud-hypervisor would log",
		"-vvv":                                  "argument 5 (-vvv): this is refused: cloud-hypervisor would log",
		"--log-file /x":                         "argument 5 (--log-file)",
		"--gpu socket=/x":                       "patched",
		"--event-monitor path=/x":               "needs it itself",
		"--no-shutdown":                         "(--no-shutdown)",
		"--landlock":                            "(--landlock)",
		"--landlock-rules path=/x,access=r":     "(--landlock-rules)",
		"--debug-console tty":                   "(--debug-console)",
		"--gdb path=/x":                         "(--gdb)",
		"--user-device socket=/x":               "whole memory",
		"--generic-vhost-user socket=/x":        "whole memory",
		"--memory-zone size=1G,id=a":            "(--memory-zone)",
		"--numa guest_numa_id=0":                "does not understand",
		"--restore source_url=file:///x":        "(--restore)",
		"--fw-cfg-config items=[name=a]":        "(--fw-cfg-config)",
		"--help":                                "starts no VM",
		"--disc path=/x":                        "did you mean --disk?",
		"--sgx-epc size=1":                      "no such flag",
		"--seccomp false":                       "false is refused",
		"--seccomp log":                         "log is refused",
		"stray":                                 "argument 5 (stray): a word that belongs to no flag",
		"--cpus":                                "its argument is missing",
		"--cpus boot=1 --cpus boot=2":           "argument 7 (--cpus): it is there twice",
		"--watchdog yes":                        "argument 6 (yes): a word that belongs to no flag",
		"--cpus boot=x":                         "boot= x is not a number",
		"--cpus boots=1":                        "did you mean boot=?",
		"--cpus boot=1,profile=host":            "profile= is refused",
		"--cpus topology=1:2:3":                 "THREADS:CORES",
		"--memory size=1T":                      "not a size",
		"--memory size=99999999999G":            "not a size",
		"--memory file=/x":                      "would be a file",
		"--memory size=1G,hotplug_method=slow":  "one of acpi, virtio-mem",
		"--memory size":                         "size= has no value",
		"--memory size=1G,shared=maybe":         "not on, off, true or false",
		"--disk readonly=on":                    "path= is missing",
		"--disk path=/a path=/b,image_type=iso": "argument 7 (--disk): image_type= iso is not one of qcow2, raw, vhd, vhdx",
		"--disk path=/a,vhost_user=on":          "whole memory",
		"--disk path=/a,rate_limit_group=x":     "does not hand it on",
		"--net mac=02:00:00:00:00:01":           "neither tap= nor fd=",
		"--net tap=a,fd=[3]":                    "both tap= and fd=",
		"--net tap=a,num_queues=3":              "3 is no even number",
		"--net tap=a,num_queues=0":              "0 is no even number",
		"--net fd=[3,4],num_queues=2":           "2 descriptors for 2 queues",
		"--net fd=2":                            "2 is standard input, output or error",
		"--net fd=[4-4]":                        "list of numbers",
		"--net fd=[5-4]":                        "list of numbers",
		"--fs socket=/x,tag=a234567890123456789012345678901234567": "at most 36 bytes",
		"--net fd=1":                        "standard input, output or error",
		"--net fd=[3-900000]":               "list of numbers",
		"--net tap=a,mac=zz":                "mac= zz",
		"--net tap=a,ip=10.0.0.1":           "ip addr",
		"--fs tag=a --memory shared=on":     "socket= is missing",
		"--fs tag=a,socket=/x":              "--memory shared=on",
		"--fs tag=a,socket=/x,num_queues=2": "one queue of 1024",
		"--vsock cid=2,socket=/x":           "3 or more",
		"--vsock socket=/x":                 "cid= is missing",
		"--serial pty":                      "pty is refused",
		"--serial socket=/x":                "socket is refused",
		"--serial off,tty":                  "must be one of",
		"--serial loud":                     "no key of --serial",
		"--console~tty":                     "no such flag",
		"--platform tdx=on":                 "confidential",
		"--platform iommufd_fd=3":           "descriptor",
		"--platform oem_strings=[io.systemd.credential:A=hunter2,io.systemd.credential:A=hunter3]": "is there twice",
		"--platform oem_strings=[io.systemd.credential.binary:A=hunter2]":                          "no base64",
		"--platform oem_strings=[io.systemd.credential:hunter2]":                                   "not NAME=VALUE",
		"--platform oem_strings=[a,,hunter2]":                                                      "is empty",
		"--platform oem_strings=a,hunter2":                                                         "part 2 of what the commas divide",
		"--platform oem_strings=[a,hunter2":                                                        "[ without a ]",
		"--platform hunter2=b":                                                                     "part 1",
		"--watchdog=yes":                                                                           "takes no argument",
		"--platform uid=b":                                                                         "did you mean",
		"io.systemd.credential:A=hunter2":                                                          "argument 5",
		"--io.systemd.credential:A=hunter2":                                                        "no such flag",
		"--cmdline systemd.set_credential=A:hunter2":                                               "carries a credential",
		"--firmware /f":                                                                            "both --kernel and --firmware",
	} {
		c, problems := Parse(words(base+" "+line), "/w")
		if c != nil || !strings.Contains(said(problems), want) {
			t.Errorf("%s: %v, want %q", line, problems, want)
		}
		for _, p := range problems {
			if strings.Contains(p.Error()+p.Hint, "hunter") {
				t.Errorf("%s: a value is shown: %v", line, p)
			}
		}
	}
	for line, want := range map[string]string{
		"":                               "there is no command line",
		"/bin/ls -l":                     "ls is no hypervisor",
		"cloud-hypervisor --console off": "neither --kernel nor --firmware",
		"cloud-hypervisor --kernel /k --console tty":     "virtio console",
		"cloud-hypervisor --kernel /k --console file=/x": "virtio console",
	} {
		if c, problems := Parse(words(line), "/w"); c != nil || !strings.Contains(problems.Error(), want) {
			t.Errorf("%q: %v, want %q", line, problems, want)
		}
	}
}

// TestAllProblems: all at once.
func TestAllProblems(t *testing.T) {
	_, problems := Parse(words("cloud-hypervisor -v --disk path= --cpus boot=x,wrong=1 stray --gpu a"), "/w")
	if len(problems) != 7 {
		t.Errorf("%d problems:\n%v", len(problems), problems)
	}
}

// TestUnderstood: what a flag means, by what it changes.
func TestUnderstood(t *testing.T) {
	for line, want := range map[string]struct {
		extra string
		ok    func(*vm.Spec) bool
	}{
		"": {`{"serial":{"mode":"Null"}}`, func(s *vm.Spec) bool {
			return s.CPUs == 1 && s.Memory == 512<<20 && s.Console.Mode == vm.ConsoleOff
		}},
		"--serial off":                             {"", nil},
		"--serial off --cpus 4":                    {"", func(s *vm.Spec) bool { return s.CPUs == 4 && s.MaxCPUs == 0 }},
		"--serial off --cpus=boot=+2,max=2":        {"", func(s *vm.Spec) bool { return s.CPUs == 2 && s.MaxCPUs == 0 }},
		"--serial=file=x/../y":                     {"", func(s *vm.Spec) bool { return s.Console.Path == "/w/x/../y" }},
		"--serial off --memory size=1048576K":      {"", func(s *vm.Spec) bool { return s.Memory == 1<<30 }},
		"--serial off --memory size=2G,shared=OFF": {"", func(s *vm.Spec) bool { return s.Memory == 2<<30 }},
		"--serial off --memory size=5000000":       {"", func(s *vm.Spec) bool { return s.Memory == 5000000 }},
		"--serial off --memory shared=true":        {`{"memory":{"shared":true}}`, nil},
		"--serial off --memory thp=off,prefault=on,hugepage_size=2M": {
			`{"memory":{"hugepage_size":2097152,"prefault":true,"thp":false}}`, nil,
		},
		"--serial off --cpus topology=1:2:1:1,features=[amx],nested=off,kvm_hyperv=on,core_scheduling=off,max_phys_bits=40": {
			`{"cpus":{"core_scheduling":"Off","features":{"amx":true},"kvm_hyperv":true,"max_phys_bits":40,"nested":false,` +
				`"topology":{"cores_per_die":2,"dies_per_package":1,"packages":1,"threads_per_core":1}}}`, nil,
		},
		`--serial off --disk path="/a,b~[c",serial="x""y"`: {"", func(s *vm.Spec) bool { return s.Disks[0].Path == "/a,b [c" && s.Disks[0].Serial == `x"y` }},
		"--serial off --disk path=a,path=b,direct=":        {"", func(s *vm.Spec) bool { return s.Disks[0] == vm.Disk{Path: "/w/b"} }},
		"--serial off --net fd=[3-5],num_queues=6":         {"", func(s *vm.Spec) bool { return len(s.Interfaces[0].FDs) == 3 && s.Interfaces[0].Pairs == 3 }},
		"--serial off --platform ,":                        {"refused", nil},
		"--serial off --platform oem_strings=[]":           {`{"platform":{}}`, nil},
		"--serial off --platform oem_strings=[x~y],uuid=U,serial_number=S,system_serial_number=T,num_pci_segments=2,iommufd=on": {
			`{"platform":{"iommufd":true,"num_pci_segments":2,"system_serial_number":"T","system_uuid":"U"}}`, func(s *vm.Spec) bool { return s.OEMStrings[0] == "x y" },
		},
		"--serial off --platform oem_strings=[io.systemd.credential.binary:A=YQBi]": {`{"platform":{}}`, func(s *vm.Spec) bool { return s.Static[0] == vm.Static{Name: "A", Value: "a\x00b"} }},
		"--serial off --rtc --pvpanic": {`{"pvpanic":true,"rtc":{}}`, nil},
		"--serial off --pmem file=p,size=1G,iommu=on --vdpa path=/dev/v --tpm socket=t --rtc id=r": {
			`{"pmem":[{"discard_writes":false,"file":"/w/p","iommu":true,"size":1073741824}],"rtc":{"id":"r"},"tpm":{"socket":"/w/t"},"vdpa":[{"num_queues":1,"path":"/dev/v"}]}`, nil,
		},
		"--serial off --rng src=/dev/urandom --seccomp true --api-socket path=a": {"", nil},
	} {
		c, problems := Parse(words(base+" "+line), "/w")
		if want.extra == "refused" {
			if c != nil {
				t.Errorf("%s: taken", line)
			}
			continue
		}
		if c == nil {
			t.Errorf("%s: %v", line, problems)
			continue
		}
		if got := string(c.Spec.CloudHypervisor.Extra); got != want.extra || want.ok != nil && !want.ok(c.Spec) {
			t.Errorf("%s: extra %s, want %s; %+v", line, got, want.extra, *c.Spec)
		}
	}
}

// TestAPISocket: its path is kept aside, absolute, if it has one.
func TestAPISocket(t *testing.T) {
	for word, want := range map[string]string{"path=a": "/w/a", "/b": "/b", "fd=3": "", `path="c,d"`: "/w/c,d"} {
		if c, problems := Parse(words(base+" --api-socket "+word), "/w"); c == nil || c.APISocket != want {
			t.Errorf("%s: %v %+v", word, problems, c)
		}
	}
}

// TestNotes: what is not as the command line has it is said.
func TestNotes(t *testing.T) {
	for line, want := range map[string]string{
		"cloud-hypervisor --kernel /k":                               "virtio console",
		"cloud-hypervisor --kernel /k --console off --api-socket /x": "not opened",
		"cloud-hypervisor --kernel /k --console off --serial tty":    "standard output",
		"cloud-hypervisor --firmware /f --console off --cmdline x":   "ignores",
	} {
		c, problems := Parse(words(line), "/w")
		if c == nil || !strings.Contains(strings.Join(c.Notes, "\n"), want) {
			t.Errorf("%s: %v %+v, want %q", line, problems, c, want)
		}
	}
}
