// SPDX-License-Identifier: Apache-2.0

package hostcheck

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/hypervisor/console"
	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/internal/trusted"
	"github.com/vmcred/vmcred/vm"
)

// Device is a file of this host that the VMM opens for reading and writing.
type Device struct {
	Field string // the specification's, that asks for it
	Path  string
	Hint  string // what to do if the user may not
}

// Access lists what that user may not open on this host (nil is the process's
// own), a kernel that is none, and what a guest with secrets boots from, if
// someone else could have written it.
func Access(spec *vm.Spec, devices []Device, id *launch.Identity) []vm.Problem {
	wants := accesses(spec, devices)
	errs, err := tryAs(id, wants)
	c := New(spec)
	if err != nil {
		c.Fault("", "cannot check what the VM's user may open: "+err.Error(), "")
		return c.problems
	}
	for i, w := range wants {
		switch {
		case errs[i] != nil:
			c.Fault(w.field, w.refusal(id, errs[i]), w.hint)
		case w.boots && len(spec.Credentials) > 0:
			c.foreign(w, id)
		}
		if w.kernel && errs[i] == nil {
			c.kernel(w.field, w.path)
		}
	}
	c.consoleAccess(id)
	c.taps(id)
	c.shareAccess(id)
	return c.problems
}

// consoleAccess: the console's file is opened by this process, not by the VMM.
func (c *Checker) consoleAccess(id *launch.Identity) {
	to := c.spec.Console
	if to.Mode != vm.ConsoleFile {
		return
	}
	w := access{field: "console", path: to.Path, write: true, hint: "chmod or chown it, or choose another file"}
	mode := uint32(unix.W_OK)
	if !Exists(w.path) {
		w.path, mode = filepath.Dir(w.path), unix.W_OK|unix.X_OK
	}
	// What does not exist is Check's to say.
	if err := unix.Faccessat(unix.AT_FDCWD, w.path, mode, unix.AT_EACCESS); err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.Fault(w.field, w.refusal(nil, err), w.hint)
	}
	if st, err := os.Lstat(to.Path); err == nil && st.Mode().IsRegular() {
		if err := console.CheckFile(to.Path, st, id); err != nil {
			c.Fault(w.field, err.Error(), "remove it or chown it, or choose another file")
		}
	}
}

// foreign refuses what a guest with secrets boots from where someone else can
// write it: he would be given them.
func (c *Checker) foreign(w access, id *launch.Identity) {
	uid := os.Geteuid()
	if id != nil {
		uid = int(id.UID)
	}
	fd, err := trusted.File(w.path, uid)
	if err == nil {
		_ = unix.Close(fd) // only looked at
		return
	}
	if t := (*trusted.Error)(nil); errors.As(err, &t) && t.Foreign {
		c.Fault(w.field, "who changes it is given the VM's secrets: "+err.Error(), t.Tip)
	}
}

// access is one file that the VMM opens by its path.
type access struct {
	field, path string
	write       bool
	enter       bool // it is a directory
	hint        string
	boots       bool // the guest boots from it
	kernel      bool
}

func (a access) refusal(id *launch.Identity, err error) string {
	verb := "read"
	if a.write {
		verb = "write"
	}
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Sprintf("%s: %s may not %s it", QuotePath(a.path), UserName(id), verb)
	}
	return reason(a.path, err)
}

// UserName is the user in a sentence; nil is the process's own.
func UserName(id *launch.Identity) string {
	switch {
	case id == nil:
		return "this user"
	case id.User != "":
		return id.User
	}
	return "uid " + strconv.FormatUint(uint64(id.UID), 10)
}

func accesses(spec *vm.Spec, devices []Device) []access {
	const open = "chmod or chown it, and make each directory on the way searchable"
	var list []access
	for _, f := range bootFiles(spec.Boot) {
		list = append(list, access{field: f.field, path: f.path, hint: open, boots: true, kernel: f.field == kernelField})
	}
	for i, d := range spec.Disks {
		list = append(list, access{field: fmt.Sprintf("disks[%d].path", i), path: d.Path, write: !d.ReadOnly, hint: open})
	}
	for i, sh := range spec.Shares {
		if sh.Socket != "" {
			list = append(list, access{field: shareField(i), path: sh.Socket, write: true, hint: "its virtiofsd has to let this user connect"})
		}
	}
	for _, d := range devices {
		list = append(list, access{field: d.Field, path: d.Path, write: true, hint: d.Hint})
	}
	return list
}
