// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"fmt"

	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/console"
	"github.com/vmcred/vmcred/hypervisor/program"
	"github.com/vmcred/vmcred/internal/kvm"
)

// oldest is the first version that has all that is asked of it: one CPU socket
// unless told otherwise (6.2), -action and pvpanic-pci (6.0). tested is the
// oldest that the tests run against.
var (
	oldest = version{6, 2, 0}
	tested = version{7, 2, 0}
)

// Probe finds QEMU, asks its version (once per file and boot, if there is a
// CacheDir) and says what the accelerator "auto" stands for here. Errors are an
// *Error with a hint, or the context's.
func (d *Driver) Probe(ctx context.Context) (hypervisor.Info, error) {
	p := d.program()
	path, err := p.Find()
	if err != nil {
		return hypervisor.Info{}, err
	}
	line, err := p.VersionLine(ctx, path, func(line []byte) error { _, err := parseVersion(line); return err })
	if err != nil {
		return hypervisor.Info{}, err
	}
	v, _ := parseVersion([]byte(line)) // a valid one
	if v.Less(oldest) {
		return hypervisor.Info{}, &Error{
			Message: fmt.Sprintf("%s is QEMU %s, and %s is the oldest that works here", path, v, oldest),
			Cure:    "install a newer qemu-system-x86 (Debian 12 has 7.2)",
		}
	}
	info := hypervisor.Info{Path: path, Version: v.String()}
	if d.o.CacheDir == "" {
		info.Accel, info.Why = accelerator(kvm.SelfTest())
	} else {
		info.Accel, info.Why = accelerator(kvm.Remembered(d.o.CacheDir))
	}
	return info, nil
}

func (d *Driver) program() *program.Program {
	return &program.Program{
		Name: executable, Path: d.o.Path, Title: "QEMU",
		Install: "apt install qemu-system-x86", CacheDir: d.o.CacheDir,
	}
}

// emulated begins Info.Why where KVM cannot be used.
const emulated = "software emulation, which is slower: "

func accelerator(r kvm.Result) (accel, why string) {
	if r.Usable {
		return "kvm", "KVM"
	}
	return "tcg", emulated + console.OneLine(r.Why)
}

// versionLine begins the first line of "qemu-system-x86_64 --version":
// "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)".
const versionLine = "QEMU emulator version "

// version is QEMU's: major, minor, micro.
type version = program.Version

func parseVersion(line []byte) (version, error) { return program.ParseVersion(versionLine, line) }

// parseInfo reads Info.Version back, which may come from another driver's test.
func parseInfo(info hypervisor.Info) version {
	v, _ := parseVersion([]byte(versionLine + info.Version))
	return v
}
