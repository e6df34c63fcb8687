// SPDX-License-Identifier: Apache-2.0

package secret

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// limited runs as an ordinary user who may lock 128 KiB.
func limited(s *subject) error {
	lim := unix.Rlimit{Cur: 128 << 10, Max: 128 << 10}
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &lim); err != nil {
		return err
	}
	_, err := s.arena.Make(1<<20, func(b []byte) (int, error) { return len(b), nil })
	if err := wantLockError(err, 1<<20); err != nil {
		return err
	}
	_, err = NewMemfd("large", Rope{{Text: strings.Repeat("x", 1<<20)}})
	if err := wantLockError(err, 1<<20); err != nil {
		return err
	}
	// What there was before is untouched, and what fits still fits.
	if s.value.Len() != len(plain) {
		return errors.New("the first value is gone")
	}
	_, err = s.arena.Base64(s.value)
	return err
}

func wantLockError(err error, n int) error {
	var lock *LockError
	if !errors.As(err, &lock) {
		return fmt.Errorf("not a LockError: %w", err)
	}
	if lock.Bytes != n || lock.Limit != 128<<10 || !strings.Contains(lock.Hint(), "LimitMEMLOCK") ||
		!strings.Contains(lock.Error(), "limit 131072 bytes") {
		return fmt.Errorf("%+v: %w", *lock, err)
	}
	return nil
}

func TestLockLimit(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{subjectEnv + "=limit"}
	cmd.Stdin = strings.NewReader(plain)
	if os.Geteuid() == 0 { // root may lock as much as it likes
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65531, Gid: 65531}}
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v: %s", err, bytes.TrimSpace(out))
	}
}
