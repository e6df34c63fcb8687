// SPDX-License-Identifier: Apache-2.0

package option

import (
	"slices"
	"strings"
	"testing"
)

// Arguments are parted by blanks here, and what they say is refused at place at.
func TestRefused(t *testing.T) {
	for _, c := range []struct {
		args   string
		at     int
		reason string
	}{
		{"-smbios type=11,value=a", 0, ownRoad},
		{"--fw_cfg name=opt/x,string=y", 0, ownRoad},
		{"-device virtio-balloon-pci -mon chardev=a", 2, debugger},
		{"-monitor stdio", 0, debugger},
		{"-qmp unix:/x,server=on", 0, debugger},
		{"-gdb tcp::1", 0, debugger},
		{"-s", 0, debugger},
		{"-serial mon:stdio", 1, debugger},
		{"-chardev stdio,id=a,mux=on", 1, debugger},
		{"-D /tmp/log", 0, logs},
		{"-d in_asm", 0, logs},
		{"-trace x", 0, logs},
		{"-dump-vmstate /x", 0, logs},
		{"-object filter-dump,id=f,netdev=n,file=/x", 1, logs},
		{"-readconfig /x", 0, unread},
		{"-incoming defer", 0, oldState},
		{"-loadvm x", 0, oldState},
		{"-daemonize", 0, ownStart},
		{"-run-with chroot=/x", 0, ownStart},
		{"-S", 0, ownStart},
		{"-no-reboot", 0, ownEnd},
		{"-action reboot=reset", 0, ownEnd},
		{"-sandbox off", 0, ownWalls},
		{"-add-fd fd=3,set=1", 0, descends},
		{"-chardev socket,id=a,fd=5", 1, descends},
		{"-netdev tap,id=n,fds=5:6", 1, descends},
		{"-netdev tap,id=n,vhostfd=5", 1, descends},
		{`-blockdev {"driver":"file","filename":"/dev/fd/5","node-name":"a"}`, 1, descends},
		{"-drive file=/proc/self/fd/5", 1, descends},
		{"-drive file=fd:5", 1, descends},
		{"/dev/fdset/1", 0, descends},
		{"-machine dump-guest-core=on", 1, machines},
		{"-M pc", 1, machines},
		{"-machine hpet=off,memory-backend=m", 1, machines},
		{"-object secret,id=s,data=hunter2", 1, onArgv},
		{"-object id=s,qom-type=secret,data=hunter2", 1, onArgv},
		{`-object {"qom-type":"secret","id":"s","data":"hunter2"}`, 1, onArgv},
		{`-object {"qom-type":"s\u0065cret","id":"s","data":"hunter2"}`, 1, escapes},
		{"-iscsi user=a,password=hunter2", 1, onArgv},
		{"-drive file=https://a:hunter2@host/x", 1, onArgv},
		{"-object memory-backend-file,id=m,mem-path=/x,size=1G", 1, ramInFile},
		{"-object memory-backend-ram,id=m,size=1G,dump=on", 1, merged},
		{"-mem-path /x", 0, ramInFile},
		{"-device vhost-user-blk-pci,chardev=a", 1, seesRAM},
		{"-device id=a,driver=ivshmem-doorbell", 1, seesRAM},
		{"-netdev vhost-user,id=n,chardev=a", 1, seesRAM},
		{"-plugin /x.so", 0, seesRAM},
		{"-device loader,file=/x", 1, boots},
		{"-drive if=pflash,file=/x", 1, boots},
		{"-bios /x", 0, boots},
		{"-L /x", 0, boots},
		{"-append x", 0, boots},
		{"-device i6300esb", 1, inFile},
		{"-m 4G", 0, inFile},
		{"-global fw_cfg_io.x-file-slots=16", 1, room},
		{"-set device.a.b=c", 0, later},
		{"-fsdev local,id=a,path=/", 0, shares},
		{"-vnc :0", 0, watched},
		{"-device x,a=io.systemd.credential:A=hunter2", 1, ownRoad},
		{"-display vnc=:0", 1, watched},
		{"-display gtk", 1, watched},
		{"-curses", 0, watched},
		{"-async-teardown", 0, ownStart},
		{"-object qtest,id=q,chardev=c", 1, debugger},
		{"-object cryptodev-vhost-user,id=c,chardev=c", 1, seesRAM},
		{"-object id=c,qom-type=vhost-user-backend,chardev=c", 1, seesRAM},
		{"-object {'qom-type':'memory-backend-file','id':'m','size':1,'mem-path':'/x'}", 1, escapes},
		{"-netdev {'type':'vhost-user','id':'n','chardev':'c'}", 1, escapes},
		{`-drive file=json:{"driver":"file","filename":"\u002fproc"}`, 1, escapes},
		{"-netdev stream,id=n,addr.type=fd,addr.str=3", 1, descends},
		{`-netdev {"type":"stream","id":"n","addr":{"type":"fd","str":"3"}}`, 1, descends},
		{"-drive file=/dev/./fd/5", 1, descends},
		{"-drive file=dev//fd/5", 1, descends},
		{"-drive file=proc/self/fd/5", 1, descends},
		{"-drive file=iscsi://a%hunter2@host/x", 1, onArgv},
		{"-device virtio-net-pci,netdev=n,romfile=/x.rom", 1, boots},
		{`-device {"driver":"e1000","romfile":"/x.rom"}`, 1, boots},
		{"-global e1000.romfile=/x.rom", 1, boots},
		{"-global device.x-file-slots=16", 1, room},
	} {
		got := Refuse(strings.Fields(c.args))
		if len(got) == 0 || got[0].Index != c.at || got[0].Reason != c.reason {
			t.Errorf("%s: %+v, want %d: %s", c.args, got, c.at, c.reason)
		}
		for _, r := range got {
			if strings.Contains(r.Option+r.Reason, "hunter2") {
				t.Errorf("%s: a value is shown: %+v", c.args, r)
			}
		}
	}
	// An escape behind the first line.
	if got := Refuse([]string{"-object", "{\n\"qom-type\":\"\\u006demory-backend-file\"}"}); len(got) != 1 || got[0].Reason != escapes {
		t.Errorf("JSON of two lines: %+v", got)
	}
	if got := Refuse([]string{"-s", "-device", "-S"}); len(got) != 2 {
		t.Errorf("what stands for a value: %+v", got)
	}
}

func TestPassedOn(t *testing.T) {
	for _, args := range []string{
		"", "-device virtio-balloon-pci,id=balloon0", "-netdev user,id=n,hostfwd=tcp::2222-:22 -device virtio-net-pci,netdev=n,romfile=",
		"-device intel-iommu,intremap=on -machine kernel-irqchip=split", "-cpu host,-avx512f", "-snapshot", "-rtc base=localtime",
		"-drive file=/x.iso,if=none,media=cdrom,id=cd -device ide-cd,drive=cd", "-object secret_keyring,id=k,serial=1",
		"-object rng-random,id=r,filename=/dev/random", "-object memory-backend-ram,id=m,size=1G -numa node,memdev=m",
		"-chardev socket,id=a,path=/run/x,server=on,wait=off -device virtserialport,chardev=a", "-global kvm-pit.lost_tick_policy=discard",
		"-usb -device usb-tablet", "-device vfio-pci,host=0000:01:00.0", `-device {"driver":"virtio-rng-pci","id":"x"}`, "- --",
		"-blockdev driver=luks,node-name=a,file=b,key-secret=k", "-display none", `-device {"driver":"e1000","romfile":""}`,
		"-netdev stream,id=n,addr.type=unix,addr.path=/run/x", "-drive file=/srv/o'brien.img,if=none,id=d",
	} {
		if got := Refuse(strings.Fields(args)); len(got) > 0 {
			t.Errorf("%s: %+v", args, got)
		}
	}
}

// FuzzRefuse: each argument is judged once, in order, and a credential's string never passes.
func FuzzRefuse(f *testing.F) {
	f.Add("-smbios\x1ftype=11,value=io.systemd.credential:A=b")
	f.Add("--\x1f-\x1f{\x1f-object\x1f{\"a\":1}")
	f.Fuzz(func(t *testing.T, line string) {
		args := strings.Split(line, "\x1f")
		got := Refuse(args)
		if !slices.IsSortedFunc(got, func(a, b Refusal) int { return a.Index - b.Index }) {
			t.Fatalf("%+v", got)
		}
		for i, a := range args {
			if strings.Contains(a, "io.systemd.credential") &&
				!slices.ContainsFunc(got, func(r Refusal) bool { return r.Index == i }) {
				t.Errorf("%q passes", a)
			}
		}
	})
}

// TestOneString: an option and its value in one string is no option of QEMU's, and
// of what follows the name nothing is shown.
func TestOneString(t *testing.T) {
	for _, arg := range []string{
		"-device virtio-balloon-pci", "-device\tx", "--device=x",
		"-smbios type=11,value=io.systemd.credential:a=hunter2", "-smbios=type=11,value=io.systemd.credential:a=hunter2",
	} {
		got := Refuse([]string{"-nodefaults", arg})
		if len(got) != 1 || got[0].Index != 1 || got[0].Reason != oneString || got[0].Option != "device" && got[0].Option != "smbios" {
			t.Errorf("%q: %v", arg, got)
		}
	}
}
