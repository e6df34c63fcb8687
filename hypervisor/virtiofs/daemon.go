// SPDX-License-Identifier: Apache-2.0

// Package virtiofs runs a VM's shared directories: one virtiofsd for each, as a
// user of its own, that ends with the VM.
//
// Two programs have that name. The one in Rust is supported from 1.13 on, which
// enters its sandbox without a helper and can be read-only by itself. The one in C
// was part of QEMU before 8.0; it runs as root only.
package virtiofs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/program"
)

// executable is what is looked for on PATH.
const executable = "virtiofsd"

// elsewhere are its places beside PATH: Debian 13 and Fedora, Arch, Debian 12.
func elsewhere() []string {
	return []string{"/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd"}
}

const install = "apt install virtiofsd (Debian 13), or cargo install virtiofsd"

// Options are where the daemon is looked for.
type Options struct {
	Path     string // the executable; empty: on PATH and in the usual places
	CacheDir string // where its version is remembered until the next boot; empty: nowhere
}

// Daemon is the virtiofsd of this host.
type Daemon struct {
	Path    string
	Version program.Version
	Legacy  bool // the one in C, with QEMU's version
}

// String names it in a sentence: "virtiofsd 1.14.0".
func (d Daemon) String() string {
	if d.Legacy {
		return "QEMU's old virtiofsd " + d.Version.String()
	}
	return "virtiofsd " + d.Version.String()
}

// oldest is the first version in Rust with --readonly, and with a user namespace
// that needs no newuidmap.
func oldest() program.Version { return program.Version{1, 13, 0} }

// rootAlone is what the one in C says to anyone but root, even to --version
// (measured with QEMU 7.2.22's).
const rootAlone = "setgroups() failed"

// Probe finds the daemon and asks its version. The error is a *hypervisor.Error
// with a hint, or the context's.
func Probe(ctx context.Context, o Options) (Daemon, error) {
	p := &program.Program{Name: executable, Path: o.Path, Title: executable, Install: install, CacheDir: o.CacheDir}
	path, err := find(p)
	if err != nil {
		return Daemon{}, err
	}
	var d Daemon
	_, err = p.VersionLine(ctx, path, func(line []byte) error {
		d, err = parse(path, line)
		return err
	})
	if err != nil && strings.Contains(err.Error(), rootAlone) {
		return Daemon{}, &hypervisor.Error{Message: path + " is QEMU's old virtiofsd, which runs as root only", Cure: install}
	}
	if err != nil {
		return Daemon{}, err
	}
	if !d.Legacy && d.Version.Less(oldest()) {
		return Daemon{}, &hypervisor.Error{
			Message: fmt.Sprintf("%s is virtiofsd %s, and at least %s is needed", path, d.Version, oldest()), Cure: install,
		}
	}
	return d, nil
}

// find looks on PATH first.
func find(p *program.Program) (string, error) {
	path, err := p.Find()
	if err == nil || p.Path != "" {
		return path, err
	}
	if e := (*hypervisor.Error)(nil); !errors.As(err, &e) || e.Err != nil || e.Cure != p.Install {
		return "", err // there is one on PATH, and something is wrong with it
	}
	for _, path := range elsewhere() {
		if _, err := os.Stat(path); err == nil {
			there := *p
			there.Path = path
			return there.Find()
		}
	}
	return "", err
}

// parse reads "virtiofsd 1.14.0", or "virtiofsd version 7.2.22 (Debian …)" of the one in C.
func parse(path string, line []byte) (Daemon, error) {
	d := Daemon{Path: path}
	const legacy = "virtiofsd version "
	prefix := "virtiofsd "
	for _, p := range []string{legacy, "virtiofsd backend "} { // the latter before 1.5
		if bytes.HasPrefix(line, []byte(p)) {
			prefix, d.Legacy = p, p == legacy
		}
	}
	v, err := program.ParseVersion(prefix, line)
	d.Version = v
	return d, err
}
