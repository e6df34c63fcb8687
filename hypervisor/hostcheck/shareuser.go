// SPDX-License-Identifier: Apache-2.0

package hostcheck

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"

	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/vm"
)

// rootUser is the share's user whose daemon may do all that root may in its directory.
const rootUser = "root"

// ShareUser is the user whose rights a share's daemon has; nil is the process's
// own. Only root may choose, and has to.
func ShareUser(sh vm.Share) (*launch.Identity, error) {
	if uid := os.Geteuid(); uid != 0 {
		if sh.User == "" || sh.User == strconv.Itoa(uid) {
			return nil, nil
		}
		if u, err := user.LookupId(strconv.Itoa(uid)); err == nil && u.Username == sh.User {
			return nil, nil
		}
		return nil, fmt.Errorf("only root may share a directory as user %s", sh.User)
	}
	switch sh.User {
	case "":
		return nil, errors.New("no user is named to share it as")
	case rootUser:
		return nil, nil
	}
	return launch.Lookup(sh.User)
}

// shareAccess: a share's directory is opened by its daemon, and must not be the
// hypervisor's user's: taken over, that one could write what the guest may only read.
func (c *Checker) shareAccess(vmm *launch.Identity) {
	for i, sh := range c.spec.Shares {
		if sh.Socket != "" {
			continue
		}
		field := shareField(i)
		id, err := ShareUser(sh)
		if err != nil {
			c.Fault(field+".user", err.Error(), hintOf(err))
			continue
		}
		if vmm != nil && id != nil && vmm.UID == id.UID {
			c.Fault(field+".user", UserName(id)+" is the hypervisor's own user, who could then write what the guest may only read", "give the share another user, or none")
			continue
		}
		w := access{field: field + ".source", path: sh.Source, write: !sh.ReadOnly, enter: true, hint: shareHint(sh)}
		errs, err := tryAs(id, []access{w})
		if err == nil {
			err = errs[0]
		}
		if err != nil {
			c.Fault(w.field, w.refusal(id, err), w.hint)
		}
	}
}

func shareHint(sh vm.Share) string {
	if os.Geteuid() == 0 {
		return "chmod or chown it, make each directory on the way searchable, or name another user: for the share"
	}
	return "chmod or chown it, and make each directory on the way searchable"
}

func hintOf(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}
