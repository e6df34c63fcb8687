// SPDX-License-Identifier: Apache-2.0

package kvm

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode"

	"golang.org/x/sys/unix"
)

const (
	fileName  = "kvm-selftest.json"
	fileLimit = 4096 // bytes of a remembered result
	whyLimit  = 400  // bytes of its line
	format    = 1
)

// memory is what the file holds. It is good for one boot and one device node.
type memory struct {
	Format int    `json:"format"`
	Boot   string `json:"boot"`
	Device string `json:"device"`
	Usable bool   `json:"usable"`
	Why    string `json:"why"`
}

// Remembered returns what SelfTest found before in this boot, kept in a small
// file in dir, and tests if there is none. Only what the processor itself
// showed is kept: a missing permission is looked at again every time. A file
// that is damaged, from another boot, or not this user's alone is replaced;
// if dir is empty or cannot be written to, every call tests.
func Remembered(dir string) Result {
	start := time.Now()
	v, _ := remembered(dir, Device)
	return Result{Usable: v.usable, Why: v.why, Took: time.Since(start)}
}

// remembered also says whether the verdict was read from the file.
func remembered(dir, device string) (v verdict, kept bool) {
	if dir == "" {
		return test(device), false
	}
	key, err := identify(device)
	if err != nil {
		return test(device), false
	}
	if m, err := load(dir); err == nil && m.Boot == key.Boot && m.Device == key.Device {
		return verdict{usable: m.Usable, lasting: true, why: m.Why}, true
	}
	v = test(device)
	if v.lasting {
		key.Usable, key.Why = v.usable, v.why
		// Nothing is lost if it cannot be kept: the next start tests again.
		_ = save(dir, key)
	}
	return v, false
}

// identify names this boot and this device node. A module that is loaded anew
// makes a new node, with another inode and change time. A node that this user
// may not open has no identity.
func identify(device string) (memory, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return memory{}, err
	}
	if err := unix.Access(device, unix.R_OK|unix.W_OK); err != nil {
		return memory{}, err
	}
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil {
		return memory{}, err
	}
	return memory{
		Format: format,
		Boot:   strings.TrimSpace(string(boot)),
		Device: fmt.Sprintf("%s rdev %d:%d mode %o owner %d:%d inode %d:%d changed %d.%09d", device,
			unix.Major(st.Rdev), unix.Minor(st.Rdev), st.Mode, st.Uid, st.Gid, st.Dev, st.Ino, st.Ctim.Sec, st.Ctim.Nsec),
	}, nil
}

var errNotOurs = errors.New("not a private file of this user")

func load(dir string) (memory, error) {
	fd, err := unix.Open(filepath.Join(dir, fileName), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return memory{}, err
	}
	f := os.NewFile(uintptr(fd), fileName)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return memory{}, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0 || st.Nlink != 1 {
		return memory{}, errNotOurs
	}
	b, err := io.ReadAll(io.LimitReader(f, fileLimit+1))
	if err != nil {
		return memory{}, err
	}
	return parse(b)
}

// parse is strict: exactly what save writes, and a line that a terminal can show.
func parse(b []byte) (memory, error) {
	var m memory
	if len(b) > fileLimit {
		return m, errors.New("too long")
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return memory{}, err
	}
	again, err := m.marshal()
	if err != nil || string(again) != string(b) {
		return memory{}, errors.New("not as it was written")
	}
	if m.Format != format || m.Boot == "" || m.Device == "" || m.Why == "" || len(m.Why) > whyLimit {
		return memory{}, errors.New("incomplete")
	}
	if strings.ContainsFunc(m.Why, func(r rune) bool { return r > unicode.MaxASCII || !unicode.IsPrint(r) }) {
		return memory{}, errors.New("not printable")
	}
	return m, nil
}

func (m memory) marshal() ([]byte, error) {
	b, err := json.Marshal(m)
	return append(b, '\n'), err
}

// save replaces the file in one step, so no reader sees half of it.
func save(dir string, m memory) error {
	b, err := m.marshal()
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "."+fileName+"-") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, fileName))
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}
