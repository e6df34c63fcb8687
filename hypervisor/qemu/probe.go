// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/console"
	"github.com/vmcred/vmcred/internal/kvm"
	"github.com/vmcred/vmcred/internal/trusted"
)

// oldest is the first version that has all that is asked of it: one CPU socket
// unless told otherwise (6.2), -action and pvpanic-pci (6.0). tested is the
// oldest that the tests run against.
var (
	oldest = version{6, 2, 0}
	tested = version{7, 2, 0}
)

// versionTimeout is how long --version may take: a cold disk, a busy host.
const versionTimeout = 15 * time.Second

// Probe finds QEMU, asks its version (once per file and boot, if there is a
// CacheDir) and says what the accelerator "auto" stands for here. Errors are an
// *Error with a hint, or the context's.
func (d *Driver) Probe(ctx context.Context) (hypervisor.Info, error) {
	path, err := d.find()
	if err != nil {
		return hypervisor.Info{}, err
	}
	v, err := d.version(ctx, path)
	if err != nil {
		return hypervisor.Info{}, err
	}
	if v.less(oldest) {
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

// emulated begins Info.Why where KVM cannot be used.
const emulated = "software emulation, which is slower: "

func accelerator(r kvm.Result) (accel, why string) {
	if r.Usable {
		return "kvm", "KVM"
	}
	return "tcg", emulated + console.OneLine(r.Why)
}

func (d *Driver) find() (string, error) {
	name := d.o.Path
	if name == "" {
		name = executable
	}
	path, err := exec.LookPath(name)
	switch {
	case errors.Is(err, exec.ErrDot):
		return "", &Error{Message: "PATH leads to " + path + " in the working directory", Cure: "take relative directories out of PATH"}
	case err != nil && d.o.Path != "":
		return "", &Error{Message: "no QEMU to start", Err: err}
	case err != nil:
		return "", &Error{Message: executable + " is not on PATH", Cure: "apt install qemu-system-x86"}
	}
	if path, err = filepath.Abs(path); err != nil {
		return "", err
	}
	return path, checkExecutable(path)
}

// checkExecutable: whoever can write QEMU is given the secrets, and is root
// when root asks it for its version.
func checkExecutable(path string) error {
	fd, err := trusted.File(path, os.Geteuid())
	switch {
	case err == nil:
		return unix.Close(fd)
	case errors.Is(err, fs.ErrPermission): // it may be run and not read
		return nil
	}
	return &Error{Message: "no QEMU to start", Err: err}
}

// version asks the file, or remembers what it said.
func (d *Driver) version(ctx context.Context, path string) (version, error) {
	id, err := identify(path)
	if err != nil {
		return version{}, &Error{Message: "no QEMU to start", Err: err}
	}
	if s, ok := recall(d.o.CacheDir, id); ok {
		if v, err := parseVersion([]byte(s)); err == nil {
			return v, nil
		}
	}
	v, line, err := askVersion(ctx, path)
	if err != nil {
		return version{}, err
	}
	remember(d.o.CacheDir, id, line)
	return v, nil
}

// nobody is the kernel's own idea of a user who owns nothing (overflowuid).
const nobody = 65534

// askVersion runs "--version" with an empty environment, and never as root: no
// QEMU is.
func askVersion(ctx context.Context, path string) (version, string, error) {
	limited, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	cmd := exec.CommandContext(limited, path, "--version")
	cmd.Env, cmd.Dir = []string{}, "/"
	cmd.WaitDelay = time.Second
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	var out, said head
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return version{}, "", ctx.Err()
		}
		cure := "run it by hand to see what is wrong"
		if errors.Is(err, fs.ErrPermission) {
			cure = "every user must be able to execute it, and to enter each directory on the way"
		}
		if len(said) > 0 {
			err = fmt.Errorf("%w: %s", err, console.OneLine(string(said)))
		}
		return version{}, "", &Error{Message: path + " --version failed", Err: err, Cure: cure}
	}
	line, _, _ := bytes.Cut(out, []byte("\n"))
	v, err := parseVersion(line)
	if err != nil {
		return version{}, "", &Error{Message: path + " does not look like QEMU", Err: err}
	}
	return v, string(line), nil
}

// head keeps the first 4 KiB of what is written.
type head []byte

func (h *head) Write(p []byte) (int, error) {
	*h = append(*h, p[:min(len(p), 4<<10-len(*h))]...)
	return len(p), nil
}

// version is QEMU's version: major, minor, micro.
type version [3]int

func (v version) String() string { return fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2]) }

func (v version) less(o version) bool {
	for i := range v {
		if v[i] != o[i] {
			return v[i] < o[i]
		}
	}
	return false
}

// versionLine begins the first line of "qemu-system-x86_64 --version":
// "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)".
const versionLine = "QEMU emulator version "

func parseVersion(line []byte) (version, error) {
	rest, ok := bytes.CutPrefix(line, []byte(versionLine))
	var v version
	for i := range v {
		n := 0
		for n < len(rest) && n < 4 && '0' <= rest[n] && rest[n] <= '9' {
			n++
		}
		if n == 0 && i < 2 {
			ok = false
		}
		v[i], _ = strconv.Atoi(string(rest[:n])) // digits only; "" is 0
		if rest = rest[n:]; i == len(v)-1 || !bytes.HasPrefix(rest, []byte(".")) {
			ok = ok && i > 0
			break
		}
		rest = rest[1:]
	}
	if !ok {
		return version{}, fmt.Errorf("its version reads %s", strconv.QuoteToASCII(console.OneLine(string(line))))
	}
	return v, nil
}

// parseInfo reads Info.Version back, which may come from another driver's test.
func parseInfo(info hypervisor.Info) version {
	v, _ := parseVersion([]byte(versionLine + info.Version))
	return v
}
