// SPDX-License-Identifier: Apache-2.0

package virtiofs

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/hostcheck"
	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/vm"
)

// listenFD is the listening socket's number in the daemon.
const listenFD = 3

// arguments is argv without the program. dir is the share's directory, without
// links; id is the user it runs as, nil for our own.
func (d Daemon) arguments(sh vm.Share, dir string, id *launch.Identity) []string {
	fd := "--fd=" + strconv.Itoa(listenFD)
	if d.Legacy {
		return []string{fd, "-f", "-o", "source=" + dir, "-o", "modcaps=-mknod", "-o", "log_level=warn"}
	}
	args := []string{
		fd, "--shared-dir=" + dir, "--sandbox=namespace",
		// File handles would need a capability that opens any file of the host.
		"--inode-file-handles=never", "--log-level=warn",
	}
	if sh.ReadOnly {
		args = append(args, "--readonly")
	}
	uid, gid := userOf(id)
	if uid == 0 {
		return append(args, "--modcaps=-mknod") // no guest makes devices of the host
	}
	// Root of its user namespace, so that it can give up capabilities there, and what
	// the user has belongs to the guest's root. The limit stays as we have it: only
	// root could raise it.
	return append(args, fmt.Sprintf("--uid-map=:0:%d:1:", uid), fmt.Sprintf("--gid-map=:0:%d:1:", gid), "--rlimit-nofile=0")
}

func userOf(id *launch.Identity) (uid, gid uint32) {
	if id != nil {
		return id.UID, id.GID
	}
	return uint32(os.Geteuid()), uint32(os.Getegid())
}

// refuses says why this daemon cannot run that share, or nil.
func (d Daemon) refuses(sh vm.Share, id *launch.Identity) error {
	if !d.Legacy {
		return nil
	}
	uid, _ := userOf(id)
	switch {
	case uid != 0 && os.Geteuid() != 0:
		return &hypervisor.Error{Message: d.String() + " runs as root only", Cure: install}
	case uid != 0:
		return &hypervisor.Error{
			Message: d.String() + " runs as root only, and the share as " + hostcheck.UserName(id),
			Cure:    install + "; or, if the guest may be root over the directory, user: root",
		}
	case strings.ContainsAny(sh.Source, `,\`):
		return &hypervisor.Error{
			Message: d.String() + " cannot share " + hostcheck.QuotePath(sh.Source) + ": it takes a comma or backslash as its own",
			Cure:    "give the directory another name, or: " + install,
		}
	}
	return nil
}
