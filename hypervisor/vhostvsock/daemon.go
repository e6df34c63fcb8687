// SPDX-License-Identifier: Apache-2.0

// Package vhostvsock runs the vsock device of a VM whose VMM has none of its own,
// on a host whose kernel has none either: one vhost-device-vsock for each VM, as
// the VMM's user, that ends with the VM. It connects to the same unix sockets as
// cloud-hypervisor does.
package vhostvsock

import (
	"context"

	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/program"
)

// Executable is what is looked for on PATH.
const Executable = "vhost-device-vsock"

// Install is what to do where it is missing.
const Install = "cargo install " + Executable

// Options are where the daemon is looked for.
type Options struct {
	Path     string // the executable; empty: on PATH
	CacheDir string // where its version is remembered until the next boot; empty: nowhere
}

// Daemon is the vhost-device-vsock of this host.
type Daemon struct {
	Path    string
	Version program.Version
}

// String names it in a sentence: "vhost-device-vsock 0.3.0".
func (d Daemon) String() string { return Executable + " " + d.Version.String() }

// oldest is the one that was tested. The options of those before it differ.
func oldest() program.Version { return program.Version{0, 3, 0} }

// Probe finds the daemon and asks its version. The error is a *hypervisor.Error
// with a hint, or the context's.
func Probe(ctx context.Context, o Options) (Daemon, error) {
	p := &program.Program{Name: Executable, Path: o.Path, Title: Executable, Install: Install, CacheDir: o.CacheDir}
	path, err := p.Find()
	if err != nil {
		return Daemon{}, err
	}
	d := Daemon{Path: path}
	_, err = p.VersionLine(ctx, path, func(line []byte) error {
		d.Version, err = program.ParseVersion(Executable+" ", line)
		return err
	})
	if err != nil {
		return Daemon{}, err
	}
	if d.Version.Less(oldest()) {
		return Daemon{}, &hypervisor.Error{
			Message: path + " is " + d.String() + ", and at least " + oldest().String() + " is needed", Cure: Install,
		}
	}
	return d, nil
}
