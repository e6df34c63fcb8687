// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/console"
	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/internal/trusted"
	"github.com/vmcred/vmcred/vm"
)

// CheckAccess lists what that user may not open on this host (nil is the
// process's own), a kernel that is none, and what a guest with secrets boots from,
// if someone else could have written it. Start does it again, before it asks for
// values.
func (d *Driver) CheckAccess(spec *vm.Spec, info hypervisor.Info, id *launch.Identity) []vm.Problem {
	wants := accesses(spec, info)
	errs, err := tryAs(id, wants)
	c := &checker{file: spec.File}
	if err != nil {
		c.fault("", "cannot check what the VM's user may open: "+err.Error(), "")
		return c.problems
	}
	for i, w := range wants {
		switch {
		case errs[i] != nil:
			c.fault(w.field, w.refusal(id, errs[i]), w.hint)
		case w.boots && len(spec.Credentials) > 0:
			c.foreign(w, id)
		}
		if w.kernel && errs[i] == nil {
			c.kernel(w.field, w.path)
		}
	}
	c.consoleAccess(spec.Console, id)
	if id == nil || id.UID == 0 {
		return c.problems
	}
	for i, nic := range spec.Interfaces {
		if nic.Type == "tap" && isTap(nic.ID) && !mayAttach(nic.ID, id) {
			c.fault(fmt.Sprintf("interfaces[%d].id", i), fmt.Sprintf("the tap %s belongs to another user than %s", nic.ID, userName(id)),
				fmt.Sprintf("make it anew with: ip tuntap add dev %s mode tap user %s", nic.ID, userName(id)))
		}
	}
	return c.problems
}

// consoleAccess: the console's file is opened by this process, not by QEMU.
func (c *checker) consoleAccess(to vm.Console, id *launch.Identity) {
	if to.Mode != vm.ConsoleFile {
		return
	}
	w := access{field: "console", path: to.Path, write: true, hint: "chmod or chown it, or choose another file"}
	mode := uint32(unix.W_OK)
	if !exists(w.path) {
		w.path, mode = filepath.Dir(w.path), unix.W_OK|unix.X_OK
	}
	// What does not exist is Check's to say.
	if err := unix.Faccessat(unix.AT_FDCWD, w.path, mode, unix.AT_EACCESS); err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.fault(w.field, w.refusal(nil, err), w.hint)
	}
	if st, err := os.Lstat(to.Path); err == nil && st.Mode().IsRegular() {
		if err := console.CheckFile(to.Path, st, id); err != nil {
			c.fault(w.field, err.Error(), "remove it or chown it, or choose another file")
		}
	}
}

// foreign refuses what a guest with secrets boots from where someone else can
// write it: he would be given them.
func (c *checker) foreign(w access, id *launch.Identity) {
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
		c.fault(w.field, "who changes it is given the VM's secrets: "+err.Error(), t.Tip)
	}
}

// access is one file that QEMU opens by its path.
type access struct {
	field, path string
	write       bool
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
		return fmt.Sprintf("%s: %s may not %s it", console.QuotePath(a.path), userName(id), verb)
	}
	return reason(a.path, err)
}

func userName(id *launch.Identity) string {
	switch {
	case id == nil:
		return "this user"
	case id.User != "":
		return id.User
	}
	return "uid " + strconv.FormatUint(uint64(id.UID), 10)
}

func accesses(spec *vm.Spec, info hypervisor.Info) []access {
	const open = "chmod or chown it, and make each directory on the way searchable"
	list := []access{{field: "boot.kernel", path: spec.Boot.Kernel, hint: open, boots: true, kernel: true}}
	if spec.Boot.Initrd != "" {
		list = append(list, access{field: "boot.initrd", path: spec.Boot.Initrd, hint: open, boots: true})
	}
	for i, d := range spec.Disks {
		list = append(list, access{field: fmt.Sprintf("disks[%d].path", i), path: d.Path, write: !d.ReadOnly, hint: open})
	}
	if len(spec.Interfaces) > 0 {
		list = append(list, access{field: "interfaces", path: tun, write: true, hint: "chmod 0666 " + tun + ", as udev has it"})
	}
	if accelOf(spec, info) == "kvm" {
		list = append(list, access{field: "qemu.accel", path: "/dev/kvm", write: true, hint: `add the user to the group kvm, or use "tcg"`})
	}
	return list
}

// tryAs asks the kernel about each access for that user: as itself, or on a
// thread of its own that takes the user's file system identity and then ends.
func tryAs(id *launch.Identity, wants []access) ([]error, error) {
	if id == nil || (int(id.UID) == os.Geteuid() && int(id.GID) == os.Getegid()) {
		return tryAll(wants), nil
	}
	var errs []error
	failed := make(chan error)
	defer keepDumpable()()
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := becomeForFiles(id)
		if err == nil {
			errs = tryAll(wants)
		}
		failed <- err
	}()
	if err := <-failed; err != nil {
		return nil, fmt.Errorf("becoming %s: %w", userName(id), err)
	}
	return errs, nil
}

// keepDumpable returns what sets this process's dumpable attribute as it is now.
// When a thread changes its file system identity, the kernel gives the whole
// process that of fs.suid_dumpable: on some hosts 1, which the runner must not be.
func keepDumpable() (restore func()) {
	was, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	return func() {
		// 2 cannot be set: nobody has set it, it is fs.suid_dumpable already.
		if err == nil && was != 2 {
			_ = unix.Prctl(unix.PR_SET_DUMPABLE, uintptr(was), 0, 0, 0) // 0 and 1 are always taken
		}
	}
}

// becomeForFiles changes the calling thread only. Leaving uid 0 takes the
// capabilities over files with it (capabilities(7)).
func becomeForFiles(id *launch.Identity) error {
	groups := append([]uint32{id.GID}, id.Groups...)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&groups[0])), 0); errno != 0 {
		return errno
	}
	// These return the former id, whether they worked or not: ask twice.
	_, _ = unix.SetfsgidRetGid(int(id.GID))
	_, _ = unix.SetfsuidRetUid(int(id.UID))
	gid, _ := unix.SetfsgidRetGid(-1)
	uid, _ := unix.SetfsuidRetUid(-1)
	if gid != int(id.GID) || uid != int(id.UID) {
		return unix.EPERM
	}
	return nil
}

func tryAll(wants []access) []error {
	errs := make([]error, len(wants))
	for i, w := range wants {
		mode := uint32(unix.R_OK)
		if w.write {
			mode |= unix.W_OK
		}
		errs[i] = unix.Faccessat(unix.AT_FDCWD, w.path, mode, unix.AT_EACCESS)
	}
	return errs
}

// cause takes the system's own words out of an error about a path.
func cause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
