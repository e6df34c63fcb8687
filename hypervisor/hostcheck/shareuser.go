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
