// SPDX-License-Identifier: Apache-2.0

package program

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// identity is one file on one boot: what was found out about it holds as long
// as none of this changes.
type identity struct {
	Boot  string `json:"boot"` // /proc/sys/kernel/random/boot_id
	Path  string `json:"path"`
	Dev   uint64 `json:"dev"`
	Inode uint64 `json:"inode"`
	Size  int64  `json:"size"`
	MTime int64  `json:"mtime"` // nanoseconds
	CTime int64  `json:"ctime"` // nanoseconds; cannot be set by hand
}

func identify(path string) (identity, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return identity{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return identity{
		Boot: strings.TrimSpace(string(boot)), Path: path,
		Dev: st.Dev, Inode: st.Ino, Size: st.Size,
		MTime: st.Mtim.Nano(), CTime: st.Ctim.Nano(),
	}, nil
}

// fact is the remembered file: what --version said of whom.
type fact struct {
	Of      identity `json:"of"`
	Version string   `json:"version"`
}

const factMax = 8 << 10

// factFile is where it is: one for each program.
func (p *Program) factFile() string { return p.Name + ".json" }

// recall returns what was remembered of that very file. A file that is not a
// regular one of our own that nobody else can write is as good as none.
func (p *Program) recall(id identity) (string, bool) {
	if p.CacheDir == "" || id.Boot == "" {
		return "", false
	}
	f, err := os.OpenFile(filepath.Join(p.CacheDir, p.factFile()), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", false
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil ||
		st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o022 != 0 || int(st.Uid) != os.Geteuid() {
		return "", false
	}
	b, err := io.ReadAll(io.LimitReader(f, factMax))
	var got fact
	if err != nil || json.Unmarshal(b, &got) != nil || got.Of != id {
		return "", false
	}
	return got.Version, true
}

// remember writes the fact, atomically. Failing to only costs the next start a
// process, so it is not an error. The directory is others' to make: units of
// other users have theirs in it.
func (p *Program) remember(id identity, line string) {
	if p.CacheDir == "" || id.Boot == "" {
		return
	}
	b, err := json.Marshal(fact{Of: id, Version: line})
	if err != nil || len(b) > factMax {
		return
	}
	f, err := os.CreateTemp(p.CacheDir, p.factFile()+".*") // mode 0600
	if err != nil {
		return
	}
	_, err = f.Write(b)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(p.CacheDir, p.factFile()))
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
}
