// SPDX-License-Identifier: Apache-2.0

// Package hostcheck is what of a specification this host does not have, and what
// a user may not open: the same for every VMM.
package hostcheck

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/hypervisor/console"
	"github.com/vmcred/vmcred/vm"
)

// serialMax is what virtio-blk has room for, in bytes.
const serialMax = 20

// Checker collects the problems of one specification. It reads no file.
type Checker struct {
	spec     *vm.Spec
	problems []vm.Problem
}

// New returns a checker that has looked at nothing yet.
func New(spec *vm.Spec) *Checker { return &Checker{spec: spec} }

// Problems are all that were found, in order.
func (c *Checker) Problems() []vm.Problem { return c.problems }

// Fault adds what keeps the VM from starting.
func (c *Checker) Fault(field, message, hint string) { c.add(vm.Error, field, message, hint) }

// Warn adds what does not.
func (c *Checker) Warn(field, message, hint string) { c.add(vm.Warning, field, message, hint) }

func (c *Checker) add(s vm.Severity, field, message, hint string) {
	c.problems = append(c.problems, vm.Problem{
		Severity: s, Pos: vm.Pos{File: c.spec.File}, Field: field, Message: message, Hint: hint,
	})
}

// Boot looks for what the guest boots from.
func (c *Checker) Boot() {
	for _, f := range bootFiles(c.spec.Boot) {
		c.regular(f.field, f.path)
	}
}

// bootFile is one file that a guest boots from.
type bootFile struct{ field, path string }

// bootFiles are a kernel and an initrd, or a firmware that is not the VMM's own.
func bootFiles(b vm.Boot) []bootFile {
	var list []bootFile
	switch {
	case b.Firmware == "":
		list = append(list, bootFile{kernelField, b.Kernel})
	case b.Firmware != vm.FirmwareBIOS:
		list = append(list, bootFile{"boot.firmware", b.Firmware})
	}
	if b.Initrd != "" {
		list = append(list, bootFile{"boot.initrd", b.Initrd})
	}
	return list
}

// kernelField is the one whose content is looked at, too.
const kernelField = "boot.kernel"

// Memory: a VM with more than the host has would end in the middle of its work, and
// some VMMs crash at once.
func (c *Checker) Memory() {
	var host unix.Sysinfo_t
	if unix.Sysinfo(&host) != nil {
		return
	}
	if has := int64(host.Totalram) * int64(host.Unit); c.spec.Memory > has {
		c.Fault("memory", fmt.Sprintf("%d MiB, and this host has %d MiB in all", c.spec.Memory>>20, has>>20), "give the VM less")
	}
}

// Disks looks for each disk, which is raw or qcow2, or of one more format that the
// VMM knows.
func (c *Checker) Disks(more ...string) {
	for i, d := range c.spec.Disks {
		c.disk(fmt.Sprintf("disks[%d]", i), d, more)
		c.twice(i)
	}
}

func (c *Checker) disk(field string, d vm.Disk, more []string) {
	if d.Format != "" && d.Format != "raw" && d.Format != "qcow2" && !slices.Contains(more, d.Format) {
		c.Fault(field+".format", strconv.Quote(d.Format)+" is not supported", `use "raw" or "qcow2"`)
	}
	if len(d.Serial) > serialMax {
		c.Fault(field+".serial", fmt.Sprintf("has %d characters, and virtio-blk cuts it at %d", len(d.Serial), serialMax), "")
	}
	st := c.stat(field+".path", d.Path)
	if st == nil || c.descriptor(field+".path", d.Path) {
		return
	}
	if m := st.Mode(); !m.IsRegular() && m.Type() != fs.ModeDevice {
		c.Fault(field+".path", QuotePath(d.Path)+" is "+console.KindOf(m)+", not a regular file or a block device", "")
	}
}

// ConsoleFile looks whether the console's file can be there, if it is one.
func (c *Checker) ConsoleFile() {
	path := c.spec.Console.Path
	switch {
	case c.spec.Console.Mode != vm.ConsoleFile:
		return
	case !filepath.IsAbs(path):
		c.Fault("console", fmt.Sprintf("%q is no absolute path", path), "")
		return
	}
	if st, err := os.Lstat(path); err == nil && !st.Mode().IsRegular() {
		c.Fault("console", QuotePath(path)+" is "+console.KindOf(st.Mode())+", not a regular file", "")
	}
	if dir := filepath.Dir(path); !Exists(dir) {
		c.Fault("console", QuotePath(dir)+": no such directory", "mkdir it first")
	}
}

func (c *Checker) regular(field, path string) {
	if st := c.stat(field, path); st != nil && !c.descriptor(field, path) && !st.Mode().IsRegular() {
		c.Fault(field, QuotePath(path)+" is "+console.KindOf(st.Mode())+", not a regular file", "")
	}
}

// descriptor refuses a path whose meaning depends on who opens it: what is looked at
// here would be a file of this process, and the VMM would open one of its own, which
// may hold credentials.
func (c *Checker) descriptor(field, path string) bool {
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil || !within(dir, "/proc") {
		return false
	}
	c.Fault(field, QuotePath(path)+" is another file in each process", "give the path of the file itself")
	return true
}

// stat reports a path that is not absolute or not there, and returns nil then.
func (c *Checker) stat(field, path string) fs.FileInfo {
	if !filepath.IsAbs(path) {
		c.Fault(field, fmt.Sprintf("%q is no absolute path", path), "")
		return nil
	}
	st, err := os.Stat(path)
	if err != nil {
		c.Fault(field, reason(path, err), "")
		return nil
	}
	return st
}

// reason is "/path: no such file or directory", the path quoted if it must be.
func reason(path string, err error) string {
	return QuotePath(path) + ": " + cause(err).Error()
}

// cause takes the system's own words out of an error about a path.
func cause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// QuotePath leaves an ordinary path alone and quotes what a terminal would not
// show as it is.
func QuotePath(path string) string { return console.QuotePath(path) }

// Exists tells what is there from what is missing or cannot be looked at.
func Exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
