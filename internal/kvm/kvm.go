// SPDX-License-Identifier: Apache-2.0

// Package kvm tells in a few milliseconds whether KVM on this machine runs
// 64-bit code with paging and SSE. That /dev/kvm opens is no proof: under some
// nested hypervisors it runs simple code and then never boots a Linux, and
// nothing says so.
package kvm

import "time"

// Device is the kernel's interface to KVM.
const Device = "/dev/kvm"

// Result is what the self-test found.
type Result struct {
	Usable bool          // an operating system can be expected to run
	Why    string        // one line for people: what was found and, if not usable, what to do
	Took   time.Duration // how long this answer took; next to nothing if remembered
}

// verdict is a result and whether it will be the same until the next boot.
// What depends on the user or on the moment (no permission, busy, no memory)
// will not.
type verdict struct {
	usable, lasting bool
	why             string
}
