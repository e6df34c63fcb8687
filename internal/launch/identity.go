// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"errors"
	"fmt"
	"os/user"
	"slices"
	"strconv"
)

// Identity is the user a process runs as.
type Identity struct {
	User   string // for messages; may be empty
	UID    uint32
	GID    uint32
	Groups []uint32 // supplementary groups, as kvm
}

// UnknownUserError says that this host has no such user.
type UnknownUserError struct{ User string }

// Error implements error.
func (e *UnknownUserError) Error() string { return fmt.Sprintf("user %s does not exist", e.User) }

// Hint says what to do about it.
func (e *UnknownUserError) Hint() string {
	return "make it: useradd --system --user-group --no-create-home --shell /usr/sbin/nologin " + e.User
}

// Lookup finds a user in /etc/passwd and its groups in /etc/group. It returns an
// [*UnknownUserError] when there is none.
func Lookup(name string) (*Identity, error) {
	u, err := user.Lookup(name)
	if unknown := user.UnknownUserError(""); errors.As(err, &unknown) {
		return nil, &UnknownUserError{User: name}
	}
	if err != nil {
		return nil, fmt.Errorf("looking up user %s: %w", name, err)
	}
	id := &Identity{User: name}
	if id.UID, err = parseID(u.Uid); err != nil {
		return nil, fmt.Errorf("user %s: %w", name, err)
	}
	if id.GID, err = parseID(u.Gid); err != nil {
		return nil, fmt.Errorf("user %s: group %w", name, err)
	}
	groups, err := u.GroupIds()
	if err != nil {
		return nil, fmt.Errorf("looking up the groups of user %s: %w", name, err)
	}
	for _, g := range groups {
		gid, err := parseID(g)
		if err != nil {
			return nil, fmt.Errorf("user %s: group %w", name, err)
		}
		if gid != id.GID {
			id.Groups = append(id.Groups, gid)
		}
	}
	return id, nil
}

func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("id %q is not a number", s)
	}
	return uint32(n), nil
}

// check refuses root: a VMM that is taken over must not be that.
func (id *Identity) check() error {
	switch {
	case id.UID == 0:
		return errors.New("refusing to start it as root (uid 0)")
	case id.GID == 0 || slices.Contains(id.Groups, 0):
		return errors.New("refusing to start it in root's group (gid 0)")
	case id.UID == ^uint32(0) || id.GID == ^uint32(0):
		return errors.New("uid or gid 4294967295 means no user")
	}
	return nil
}
