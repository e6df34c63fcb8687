// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/secret"
)

const (
	vmName = "test-vm"
	vmUser = "vmcred-" + vmName
	// marker begins a VM's file that this program wrote and may remove.
	marker = "# written by the vmcred demo, which removes it at its end\n"
)

// demo is what the steps share.
type demo struct {
	vmcred string
	began  time.Time
	guest  string // the directory with the guest's kernel and initrd
	arena  *secret.Arena
	values map[string]*secret.Value // by name on the host
	nonce  string
	creds  string // the credentials directory
	runDir string // the VM's runtime directory while it runs
	env    []string
	plan   planned
	vm     *vmProcess
	undo   []func() error // last first
}

// cleanUp takes away whatever the demo made, also after a failure.
func (d *demo) cleanUp() error {
	var err error
	for i := len(d.undo) - 1; i >= 0; i-- {
		err = errors.Join(err, d.undo[i]())
	}
	d.undo = nil
	return err
}

// buildGuest builds the guest, or finds it in the cache.
func buildGuest(ctx context.Context, d *demo) error {
	cmd := exec.CommandContext(ctx, "examples/guest/build")
	cmd.Stderr = os.Stdout
	out, err := cmd.Output()
	if err != nil {
		return err
	}
	d.guest = strings.TrimSpace(string(out))
	version, err := os.ReadFile(filepath.Join(d.guest, "systemd-version"))
	if err != nil {
		return err
	}
	fmt.Printf("systemd %s as PID 1, in %s\n", strings.TrimSpace(string(version)), d.guest)
	return nil
}

// makeSecrets makes the secrets and what surrounds them: the directory that
// systemd would make for LoadCredential=, the VM's file and, for root, its user.
func makeSecrets(_ context.Context, d *demo) error {
	if err := d.makeDirectory(); err != nil {
		return err
	}
	if err := d.makeValues(); err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		if err := errors.Join(d.makeUser(), d.lendGuest()); err != nil {
			return err
		}
	}
	return d.writeFile()
}

// makeDirectory makes a directory that is never written to a disk: a ramfs of
// its own for root, as systemd does; for others their runtime directory.
func (d *demo) makeDirectory() error {
	base, err := d.runtimeDir()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(base, "vmcred-demo-")
	if err != nil {
		return err
	}
	d.undo = append(d.undo, func() error { return os.RemoveAll(dir) })
	d.forget(filepath.Join(base, "vmcred"))
	d.creds = filepath.Join(dir, "credentials")
	if err := os.Mkdir(d.creds, 0o700); err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		flags := uintptr(unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOSUID)
		if err := unix.Mount("ramfs", d.creds, "ramfs", flags, "mode=0700"); err != nil {
			return fmt.Errorf("mount a ramfs: %w", err)
		}
		d.undo = append(d.undo, func() error { return unix.Unmount(d.creds, 0) })
	}
	d.env = append(os.Environ(), "CREDENTIALS_DIRECTORY="+d.creds, "VMCRED_AUDIT="+filepath.Join(dir, "log", "audit.log"))
	if os.Geteuid() != 0 {
		d.env = append(d.env, "XDG_RUNTIME_DIR="+base)
	}
	d.runDir = filepath.Join(base, "vmcred", vmName)
	return nil
}

// runtimeDir is where vmcred keeps what belongs to a running VM. A user without
// a login session (su, a container) has none, and gets one in memory.
func (d *demo) runtimeDir() (string, error) {
	if os.Geteuid() == 0 {
		return "/run", nil
	}
	dir := os.Getenv("XDG_RUNTIME_DIR")
	if st, err := os.Stat(dir); err == nil && st.IsDir() {
		return dir, nil
	}
	const memory = "/dev/shm"
	var fs unix.Statfs_t
	if err := unix.Statfs(memory, &fs); err != nil || fs.Type != unix.TMPFS_MAGIC {
		return "", errors.New("there is no XDG_RUNTIME_DIR, and no " + memory + " in memory: log in through systemd-logind, or run this as root")
	}
	dir, err := os.MkdirTemp(memory, "vmcred-demo-run-")
	if err != nil {
		return "", err
	}
	d.undo = append(d.undo, func() error { return os.RemoveAll(dir) })
	fmt.Printf("no XDG_RUNTIME_DIR: using %s for the time of this demo\n", dir)
	return dir, nil
}

// lendGuest shows the guest's files where the VM's user can read them, which
// root's cache is not. Read-only, so that no clean-up can reach the cache.
func (d *demo) lendGuest() error {
	dir := filepath.Dir(d.creds)
	at := filepath.Join(dir, "guest")
	if err := errors.Join(os.Chmod(dir, 0o711), os.Mkdir(at, 0o755)); err != nil {
		return err
	}
	if err := unix.Mount(d.guest, at, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind-mount the guest: %w", err)
	}
	d.undo = append(d.undo, func() error { return unix.Unmount(at, 0) })
	d.guest = at
	return unix.Mount("", at, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
}

// forget takes vmcred's own runtime directory away at the end if it is not there
// yet. Beside VMs it holds what vmcred remembers of this host until the next boot.
func (d *demo) forget(root string) {
	if _, err := os.Lstat(root); !errors.Is(err, fs.ErrNotExist) {
		return
	}
	d.undo = append(d.undo, func() error {
		entries, err := os.ReadDir(root)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		for _, e := range entries {
			if e.Type().IsRegular() {
				err = errors.Join(err, os.Remove(filepath.Join(root, e.Name())))
			}
		}
		_ = os.Remove(root) // it stays if another VM runs
		return err
	})
}

func (d *demo) makeUser() error {
	if _, err := user.Lookup(vmUser); err == nil {
		return nil
	}
	fmt.Printf("making the system user %s, for the hypervisor to run as (removed at the end)\n", vmUser)
	add := exec.Command("useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", vmUser)
	if out, err := add.CombinedOutput(); err != nil {
		return fmt.Errorf("useradd: %w: %s", err, out)
	}
	d.undo = append(d.undo, func() error {
		if out, err := exec.Command("userdel", vmUser).CombinedOutput(); err != nil {
			return fmt.Errorf("userdel: %w: %s", err, out)
		}
		return nil
	})
	return nil
}

// writeFile writes the VM's file where vmcred looks for a name.
func (d *demo) writeFile() error {
	dir := "/etc/vmcred/vms"
	if os.Geteuid() != 0 {
		config := filepath.Join(filepath.Dir(d.creds), "config")
		d.env = append(d.env, "XDG_CONFIG_HOME="+config)
		dir = filepath.Join(config, "vmcred", "vms")
	}
	if err := d.makeParents(dir); err != nil {
		return err
	}
	text, err := d.vmFile()
	if err != nil {
		return err
	}
	path := filepath.Join(dir, vmName+".yaml")
	if old, err := os.ReadFile(path); err == nil && !strings.HasPrefix(string(old), marker) {
		return fmt.Errorf("%s exists and is yours: the demo does not touch it", path)
	} else if err == nil {
		_ = os.Remove(path)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	d.undo = append(d.undo, func() error { return os.Remove(path) })
	if _, err = f.WriteString(text); err != nil {
		return errors.Join(err, f.Close())
	}
	fmt.Printf("%s:\n%s", path, indent(strings.TrimPrefix(text, marker)))
	return f.Close()
}

// makeParents makes directories, and removes those it made if they are empty at the end.
func (d *demo) makeParents(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := d.makeParents(filepath.Dir(dir)); err != nil {
		return err
	}
	d.undo = append(d.undo, func() error { _ = os.Remove(dir); return nil })
	return os.Mkdir(dir, 0o755)
}

func (d *demo) vmFile() (string, error) {
	cmdline, err := os.ReadFile(filepath.Join(d.guest, "cmdline"))
	if err != nil {
		return "", err
	}
	version, err := os.ReadFile(filepath.Join(d.guest, "systemd-version"))
	if err != nil {
		return "", err
	}
	return fmt.Sprintf(marker+`version: 1
hypervisor: qemu
cpus: 2
memory: 512MiB
boot:
  kernel: %[1]s/vmlinuz
  initrd: %[1]s/initrd
  cmdline: %[2]s
guest: {systemd: %[3]s, units: [%[1]s/units]}
credentials:
  host-api-key: {}
  host-db-password: {}
  host-jwt-secret: {}
static:
  ENVIRONMENT: test
  CLUSTER: example-host
  DEMO_NONCE: %[4]s
`, d.guest, strings.TrimSpace(string(cmdline)), strings.TrimSpace(string(version)), d.nonce), nil
}

func indent(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString("  " + line)
	}
	return b.String()
}
