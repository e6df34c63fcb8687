// SPDX-License-Identifier: Apache-2.0

package cloudhypervisor

import (
	"context"
	"fmt"

	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/console"
	"github.com/vmcred/vmcred/hypervisor/program"
	"github.com/vmcred/vmcred/internal/kvm"
)

// Versions: a bzImage boots since v39; image_type is there since v51; v53 is what
// the tests run against.
var (
	oldest     = version{39, 0, 0}
	imageTypes = version{51, 0, 0}
	tested     = version{53, 0, 0}
)

// Probe finds cloud-hypervisor, asks its version (once per file and boot, if
// there is a CacheDir) and looks whether KVM can boot an operating system here.
// Errors are a *hypervisor.Error with a hint, or the context's.
func (d *Driver) Probe(ctx context.Context) (hypervisor.Info, error) {
	p := program.Program{
		Name: executable, Path: d.o.Path, Title: "cloud-hypervisor",
		Install: "install cloud-hypervisor and put it on PATH", CacheDir: d.o.CacheDir,
	}
	path, err := p.Find()
	if err != nil {
		return hypervisor.Info{}, err
	}
	line, err := p.VersionLine(ctx, path, func(line []byte) error { _, err := parseVersion(line); return err })
	if err != nil {
		return hypervisor.Info{}, err
	}
	v, err := parseVersion([]byte(line))
	if err != nil {
		return hypervisor.Info{}, err
	}
	if v.Less(oldest) {
		return hypervisor.Info{}, &hypervisor.Error{
			Message: fmt.Sprintf("%s is cloud-hypervisor %s, and %s is the oldest that works here", path, v, oldest),
			Cure:    "install a newer one",
		}
	}
	result := kvm.SelfTest
	if d.o.CacheDir != "" {
		result = func() kvm.Result { return kvm.Remembered(d.o.CacheDir) }
	}
	info := hypervisor.Info{Path: path, Version: v.String(), Accel: "kvm", Why: "KVM"}
	if r := result(); !r.Usable {
		info.Why = noKVM + console.OneLine(r.Why)
	}
	return info, nil
}

// noKVM begins Info.Why where KVM boots no operating system; there is no
// emulation to fall back to.
const noKVM = "KVM that cannot boot an operating system: "

// versionLine begins the answer to --version: "cloud-hypervisor v53.0".
const versionLine = "cloud-hypervisor v"

// version is cloud-hypervisor's: major, minor, patch.
type version = program.Version

func parseVersion(line []byte) (version, error) { return program.ParseVersion(versionLine, line) }

// parseInfo reads Info.Version back, which may come from a test.
func parseInfo(info hypervisor.Info) version {
	v, _ := parseVersion([]byte(versionLine + info.Version))
	return v
}
