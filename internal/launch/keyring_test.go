// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// keyName is a key that is in the session of whoever starts a VM.
const keyName = "vmcred test: a passphrase"

// giveKey gives this process a session's keyring with a key in it, as pam_keyinit(8)
// gives a login one. Every thread that is started from now on, and every process,
// has it.
func giveKey() error {
	// By a process of its own, as Go's other threads would keep theirs.
	if os.Getenv("VMCRED_TEST_KEYED") != "" {
		return readKey() // the control: it is there
	}
	runtime.LockOSThread()
	if _, _, errno := unix.Syscall(unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0); errno != 0 {
		return errno
	}
	if _, err := unix.AddKey("user", keyName, []byte("sesame"), unix.KEY_SPEC_SESSION_KEYRING); err != nil {
		return err
	}
	return unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), "VMCRED_TEST_KEYED=1"))
}

// readKey reads that key. That there is none where it looks is a refusal.
func readKey() error {
	id, err := unix.KeyctlSearch(unix.KEY_SPEC_SESSION_KEYRING, "user", keyName, 0)
	if err == nil {
		_, err = unix.KeyctlBuffer(unix.KEYCTL_READ, id, make([]byte, 16), 0)
	}
	if errors.Is(err, unix.ENOKEY) {
		err = fmt.Errorf("%w: %w", fs.ErrPermission, err)
	}
	return err
}

// A session's keyring is inherited, and who has it may read the keys in it, whichever
// user that is: root's login has those of disks and of tickets there.
func TestNoKeyOfTheSession(t *testing.T) {
	if _, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false); errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		t.Skipf("SKIPPED, no VMM looked for a key: this machine has no keyrings: %v", err)
	}
	who := map[string][]string{"of its own user": {"keyed"}}
	if os.Geteuid() == 0 {
		who["of another user"] = []string{"keyed", strconv.Itoa(firstUID)}
	}
	for name, args := range who {
		t.Run(name, func(t *testing.T) {
			c := startRunner(t, -1, args...)
			if answer := c.try(t, sessionKey, c.Runner); !strings.HasPrefix(answer, "refused: ") {
				t.Errorf("the key of the session that started it: %s", answer)
			}
		})
	}
}
