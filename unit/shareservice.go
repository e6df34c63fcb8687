// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vmcred/vmcred/vm"
)

// shareService runs the daemon in a file system that holds the directory, what a
// program is made of, and nothing else. That is its sandbox: the daemon's own would
// need privileges to make, or user namespaces, in which files lose their owners.
func shareService(spec *vm.Spec, sh vm.Share, d Virtiofsd) ([]byte, error) {
	root := sh.User == "root"
	if d.Legacy && !root {
		return nil, &ShareError{sh.Tag, d.Path + " is QEMU's old virtiofsd, which runs as root only", "install a newer one, or, if the guest may be root over the directory, user: root"}
	}
	if d.Legacy && strings.ContainsAny(sh.Source, `,\`) {
		return nil, &ShareError{sh.Tag, fmt.Sprintf("QEMU's old virtiofsd takes the comma or backslash of %q as its own", sh.Source), "give the directory another name"}
	}
	user, maker := sh.User, ""
	if user == "" || user == ShareUser(spec.Name) {
		user, maker = ShareUser(spec.Name), "vmcred-share-user@"+spec.Name+".service"
	}
	b := shareHead(spec, sh, "", maker)
	fmt.Fprintf(b, "OnFailure=vmcred-share-lost@%s.service\nStartLimitIntervalSec=0\n", spec.Name)
	b.WriteString("\n# Started when the VM connects; it ends when the VM hangs up.\n[Service]\n")
	fmt.Fprintf(b, "ExecStart=%s\n", command(shareArguments(sh, d)))
	fmt.Fprintf(b, "User=%s\n", user)
	shareFiles(b, sh, d)
	b.WriteString(shareHardening)
	b.WriteString(shareRights(root, d))
	return b.Bytes(), nil
}

// shareArguments is the daemon's command line. Descriptor 3 is the socket that
// systemd listens on (sd_listen_fds(3)).
func shareArguments(sh vm.Share, d Virtiofsd) []string {
	if d.Legacy {
		return []string{d.Path, "--fd=3", "-f", "-o", "source=" + sh.Source, "-o", "sandbox=chroot", "-o", "modcaps=-mknod", "-o", "log_level=warn"}
	}
	args := []string{d.Path, "--fd=3", "--shared-dir=" + sh.Source, "--sandbox=none", "--inode-file-handles=never", "--log-level=warn"}
	if sh.ReadOnly {
		args = append(args, "--readonly")
	}
	if sh.User == "root" {
		return append(args, "--modcaps=-mknod") // PrivateDevices= takes that one
	}
	return append(args, "--rlimit-nofile=0")
}

// shareFiles is all that the daemon sees.
func shareFiles(b *bytes.Buffer, sh vm.Share, d Virtiofsd) {
	b.WriteString("\nTemporaryFileSystem=/:ro\nMountAPIVFS=yes\n")
	programs := []string{"/usr", "-/lib", "-/lib64", "-/etc/ld.so.cache"}
	switch {
	case strings.HasPrefix(d.Path, "/nix/store/"):
		programs = append(programs, "/nix/store")
	case !strings.HasPrefix(d.Path, "/usr/"):
		programs = append(programs, d.Path)
	}
	if i := slices.Index(programs, sh.Source); i >= 0 {
		programs = slices.Delete(programs, i, i+1)
	}
	for i, p := range programs {
		bare, optional := strings.CutPrefix(p, "-")
		if programs[i] = quote(bare); optional {
			programs[i] = "-" + programs[i]
		}
	}
	fmt.Fprintf(b, "BindReadOnlyPaths=%s\n", strings.Join(programs, " "))
	bind := "BindPaths"
	if sh.ReadOnly {
		bind = "BindReadOnlyPaths"
	}
	fmt.Fprintf(b, "%s=%s\n", bind, quote(sh.Source))
}

// shareRights: the daemon needs none, unless the guest's root is to have the rights
// over files that the host's has. It keeps these itself, and takes SETPCAP to drop
// all others.
func shareRights(root bool, d Virtiofsd) string {
	if !root {
		return "SystemCallFilter=~@privileged\nSystemCallFilter=@chown unshare\nRestrictSUIDSGID=yes\nCapabilityBoundingSet=\n"
	}
	calls, caps := "unshare", "CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_FSETID CAP_SETGID CAP_SETUID CAP_SETFCAP CAP_SETPCAP"
	if d.Legacy {
		calls, caps = calls+" chroot", caps+" CAP_SYS_CHROOT"
	}
	return "SystemCallFilter=" + calls + "\nCapabilityBoundingSet=" + caps + "\n"
}

// shareHardening is the same for each. The daemon keeps a descriptor for each file
// that the guest knows.
const shareHardening = `
LimitNOFILE=524288
LimitCORE=1
UMask=0077
NoNewPrivileges=yes
PrivateDevices=yes
PrivateNetwork=yes
PrivateIPC=yes
PrivateMounts=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
KeyringMode=private
LockPersonality=yes
MemoryDenyWriteExecute=yes
RemoveIPC=yes
RestrictAddressFamilies=AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
IPAddressDeny=any
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
SystemCallFilter=@system-service seccomp
`

// command writes an ExecStart= line.
func command(args []string) string {
	words := make([]string, len(args))
	for i, a := range args {
		words[i] = strings.ReplaceAll(quote(a), "$", "$$")
	}
	return strings.Join(words, " ")
}

// dropInName is the drop-in's own, beside those an administrator has.
const dropInName = "vmcred.conf"

// DropInPath is where a unit's drop-in belongs. A unit file of an instance's
// own would hide the template; a drop-in adds to it.
func DropInPath(unit string) string {
	return filepath.Join(Dir, unit+".d", dropInName)
}

// Dir is where an administrator's units belong (systemd.unit(5)).
const Dir = "/etc/systemd/system"
