// SPDX-License-Identifier: Apache-2.0

package kvm

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"golang.org/x/sys/unix"
)

// limit ends a virtual CPU that does not come back by itself.
const limit = 500 * time.Millisecond

// giveUp is how long SelfTest waits for the kernel altogether.
const giveUp = 900 * time.Millisecond

// SelfTest runs a few instructions on one virtual CPU of a VM of its own and
// checks what they computed. It returns within a second, whatever the kernel does.
func SelfTest() Result {
	start := time.Now()
	v := test(Device)
	return Result{Usable: v.usable, Why: v.why, Took: time.Since(start)}
}

func test(device string) verdict {
	done := make(chan verdict, 1)
	go func() { done <- run(device) }()
	timer := time.NewTimer(giveUp)
	defer timer.Stop()
	select {
	case v := <-done:
		return v
	case <-timer.C:
		return verdict{why: fmt.Sprintf("%s did not answer within %v: KVM hangs on this machine", device, giveUp)}
	}
}

func run(device string) verdict {
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return verdict{why: openFault(device, err)}
	}
	defer unix.Close(fd)
	if v, err := ioctl(fd, getAPIVersion, nil); err != nil || v != apiVersion {
		return verdict{why: fmt.Sprintf("%s is no KVM device of interface version %d", device, apiVersion)}
	}
	m, err := newMachine(fd)
	if err != nil {
		m.close()
		return verdict{why: machineFault(err)}
	}
	defer m.close()
	return judge(m.trace())
}

// openFault says in one line why the device did not open, and what helps.
func openFault(device string, err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return device + " does not exist: load the module kvm_intel or kvm_amd; inside a VM, nested virtualization must be switched on by its host"
	case errors.Is(err, fs.ErrPermission):
		return device + " may not be opened: add this user to the device's group (usually kvm)"
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return device + " has no driver behind it: load the module kvm_intel or kvm_amd"
	case errors.Is(err, unix.EBUSY):
		return device + " is busy: end the other hypervisor that uses the processor's virtualization"
	default:
		return fmt.Sprintf("%s cannot be opened: %v", device, err)
	}
}

func machineFault(err error) string {
	if errors.Is(err, unix.EBUSY) {
		return "KVM is busy: end the other hypervisor that uses the processor's virtualization"
	}
	return fmt.Sprintf("KVM cannot make a VM: %v", err)
}

// judge compares what the virtual CPU did with what its program computes.
func judge(t trace) verdict {
	switch {
	case t.err != nil:
		return verdict{why: fmt.Sprintf("KVM cannot run a virtual CPU: %v", t.err)}
	case t.late:
		return verdict{why: fmt.Sprintf("KVM did not finish a few instructions in %v: the machine is overloaded, or KVM hangs", limit)}
	case len(t.out) == 0:
		return verdict{lasting: true, why: "KVM opens, but plain 64-bit code with paging does not run (" + t.end + ")"}
	case t.out[0] != plainSum:
		return verdict{lasting: true, why: "KVM opens, but plain 64-bit code with paging computes a wrong result"}
	case len(t.out) == 1:
		return verdict{lasting: true, why: "KVM runs plain 64-bit code, but no SSE instruction (" + t.end + "): no operating system would boot"}
	case len(t.out) != 2 || t.out[1] != sseSum:
		return verdict{lasting: true, why: "KVM runs 64-bit code, but SSE computes a wrong result: no operating system would boot"}
	case !t.halted:
		return verdict{lasting: true, why: "KVM runs 64-bit code and SSE, but does not halt (" + t.end + ")"}
	}
	return verdict{usable: true, lasting: true, why: "KVM runs 64-bit code with paging and SSE"}
}
