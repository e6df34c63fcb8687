// SPDX-License-Identifier: Apache-2.0

//go:build linux && amd64

package kvm

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestStructuresAreTheKernels(t *testing.T) {
	if n := unsafe.Sizeof(registers{}); n != 0x90 {
		t.Errorf("kvm_regs has %d bytes", n)
	}
	if n := unsafe.Sizeof(special{}); n != 0x138 {
		t.Errorf("kvm_sregs has %d bytes", n)
	}
	if n := len(program()); n != 30 {
		t.Errorf("the program has %d bytes", n)
	}
}

// On the machine the test runs on, whatever its KVM is like.
func TestSelfTestAnswersTheSameTwice(t *testing.T) {
	a, b := SelfTest(), SelfTest()
	t.Logf("%v: %s (%v)", a.Usable, a.Why, a.Took)
	if a.Usable != b.Usable || a.Why != b.Why {
		t.Errorf("first %+v, then %+v", a, b)
	}
	if a.Why == "" || strings.Contains(a.Why, "\n") {
		t.Errorf("no single line: %q", a.Why)
	}
	if a.Took <= 0 {
		t.Errorf("took %v", a.Took)
	}
}

func TestSelfTestLeavesNoDescriptor(t *testing.T) {
	count := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	SelfTest()
	before := count()
	for range 5 {
		SelfTest()
	}
	if after := count(); after > before {
		t.Errorf("%d descriptors, before %d", after, before)
	}
}

// openMachine gives a test a virtual CPU of its own.
func openMachine(t *testing.T) *machine {
	t.Helper()
	fd, err := unix.Open(Device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("SKIPPED, nothing was measured: this test needs %s: %v", Device, err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	m, err := newMachine(fd)
	t.Cleanup(m.close)
	if err != nil {
		t.Skipf("SKIPPED, nothing was measured: this test needs a KVM that makes VMs: %v", err)
	}
	return m
}

func TestAnEndlessGuestIsStopped(t *testing.T) {
	m := openMachine(t)
	copy(m.memory[codeAt:], []byte{0xeb, 0xfe}) // jmp to itself
	got := m.trace()
	if !got.late {
		t.Errorf("it ended by itself: %+v", got)
	}
	if v := judge(got); v.usable || v.lasting {
		t.Errorf("judged %+v", v)
	}
}

func TestAFaultingGuestIsNotUsable(t *testing.T) {
	m := openMachine(t)
	copy(m.memory[codeAt:], []byte{0x0f, 0x0b}) // ud2 without a handler
	if v := judge(m.trace()); v.usable {
		t.Errorf("judged %+v", v)
	}
}

func TestAWrongWordInMemoryIsSeen(t *testing.T) {
	m := openMachine(t)
	m.memory[dataAt]++
	got := m.trace()
	if len(got.out) == 0 || got.out[0] != plainSum+1 {
		t.Skipf("SKIPPED: plain code does not run here: %+v", got)
	}
	if v := judge(got); v.usable || !strings.Contains(v.why, "wrong") {
		t.Errorf("judged %+v", v)
	}
}

func TestJudge(t *testing.T) {
	cases := []struct {
		trace
		usable, lasting bool
		says            string
	}{
		{trace{out: []uint32{plainSum, sseSum}, halted: true}, true, true, "paging and SSE"},
		{trace{out: []uint32{plainSum, sseSum}, end: "KVM exit 8"}, false, true, "does not halt (KVM exit 8)"},
		{trace{out: []uint32{plainSum, sseSum + 1}, halted: true}, false, true, "SSE computes a wrong"},
		{trace{out: []uint32{plainSum, sseSum, 1}, halted: true}, false, true, "SSE computes a wrong"},
		{trace{out: []uint32{plainSum}, end: "X"}, false, true, "no SSE instruction (X)"},
		{trace{out: []uint32{plainSum + 1, sseSum}, halted: true}, false, true, "wrong result"},
		{trace{end: "X"}, false, true, "plain 64-bit code with paging does not run (X)"},
		{trace{out: []uint32{plainSum, sseSum}, halted: true, late: true}, false, false, "did not finish"},
		{trace{err: unix.EPERM}, false, false, "cannot run"},
	}
	for _, c := range cases {
		if v := judge(c.trace); v.usable != c.usable || v.lasting != c.lasting || !strings.Contains(v.why, c.says) {
			t.Errorf("%+v: judged %+v", c.trace, v)
		}
	}
}

func TestWhyTheDeviceDoesNotOpen(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "kvm")
	if v := test(missing); v.usable || v.lasting || !strings.Contains(v.why, "does not exist") {
		t.Errorf("missing: %+v", v)
	}
	if v := test("/dev/null"); v.usable || v.lasting || !strings.Contains(v.why, "no KVM device") {
		t.Errorf("another device: %+v", v)
	}
	seen := map[string]bool{}
	for _, err := range []error{fs.ErrNotExist, fs.ErrPermission, unix.EACCES, unix.ENODEV, unix.EBUSY, errors.New("odd")} {
		line := openFault(Device, err)
		if strings.Contains(line, "\n") || seen[line] && err != unix.EACCES {
			t.Errorf("%v: %q", err, line)
		}
		seen[line] = true
	}
}
