// SPDX-License-Identifier: Apache-2.0

// Package program is a VMM's executable on this host, and its version.
package program

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/console"
	"github.com/vmcred/vmcred/internal/trusted"
)

// versionTimeout is how long --version may take: a cold disk, a busy host.
const versionTimeout = 15 * time.Second

// Program is one VMM's executable. Errors of its methods are a
// *hypervisor.Error, or the context's.
type Program struct {
	Name     string // what is looked for on PATH: "qemu-system-x86_64"
	Path     string // the executable; empty: Name on PATH
	Title    string // in a sentence: "QEMU"
	Install  string // what to do where it is missing: "apt install qemu-system-x86"
	CacheDir string // where its version is remembered until the next boot; empty: nowhere
}

// Find returns the executable's absolute path. One that someone else could have
// written is refused.
func (p *Program) Find() (string, error) {
	name := p.Path
	if name == "" {
		name = p.Name
	}
	path, err := exec.LookPath(name)
	switch {
	case errors.Is(err, exec.ErrDot):
		return "", &hypervisor.Error{Message: "PATH leads to " + path + " in the working directory", Cure: "take relative directories out of PATH"}
	case err != nil && p.Path != "":
		return "", &hypervisor.Error{Message: "no " + p.Title + " to start", Err: err}
	case err != nil:
		return "", &hypervisor.Error{Message: p.Name + " is not on PATH", Cure: p.Install}
	}
	if path, err = filepath.Abs(path); err != nil {
		return "", err
	}
	return path, p.checkExecutable(path)
}

// checkExecutable: whoever can write a VMM is given the secrets, and is root
// when root asks it for its version.
func (p *Program) checkExecutable(path string) error {
	fd, err := trusted.File(path, os.Geteuid())
	switch {
	case err == nil:
		return unix.Close(fd)
	case errors.Is(err, fs.ErrPermission): // it may be run and not read
		return nil
	}
	return &hypervisor.Error{Message: "no " + p.Title + " to start", Err: err}
}

// VersionLine is the first line of what the file says to --version: asked once per
// file and boot, if there is a CacheDir. The error of valid says what is wrong
// with a line that is not this program's.
func (p *Program) VersionLine(ctx context.Context, path string, valid func(line []byte) error) (string, error) {
	id, err := identify(path)
	if err != nil {
		return "", &hypervisor.Error{Message: "no " + p.Title + " to start", Err: err}
	}
	if line, ok := p.recall(id); ok && valid([]byte(line)) == nil {
		return line, nil
	}
	line, err := p.ask(ctx, path)
	if err != nil {
		return "", err
	}
	if err := valid([]byte(line)); err != nil {
		return "", &hypervisor.Error{Message: path + " does not look like " + p.Title, Err: err}
	}
	p.remember(id, line)
	return line, nil
}

// nobody is the kernel's own idea of a user who owns nothing (overflowuid).
const nobody = 65534

// ask runs "--version" with an empty environment, and never as root: no VMM is.
func (p *Program) ask(ctx context.Context, path string) (string, error) {
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
			return "", ctx.Err()
		}
		cure := "run it by hand to see what is wrong"
		if errors.Is(err, fs.ErrPermission) {
			cure = "every user must be able to execute it, and to enter each directory on the way"
		}
		if len(said) > 0 {
			err = fmt.Errorf("%w: %s", err, console.OneLine(string(said)))
		}
		return "", &hypervisor.Error{Message: path + " --version failed", Err: err, Cure: cure}
	}
	line, _, _ := bytes.Cut(out, []byte("\n"))
	return string(line), nil
}

// head keeps the first 4 KiB of what is written.
type head []byte

func (h *head) Write(p []byte) (int, error) {
	*h = append(*h, p[:min(len(p), 4<<10-len(*h))]...)
	return len(p), nil
}
