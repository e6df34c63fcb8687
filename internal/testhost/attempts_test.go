// SPDX-License-Identifier: Apache-2.0

//go:build linux && amd64

package testhost

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// targets are what somebody tries to get at.
type targets struct {
	Unit   string         // its name
	Cgroup string         // its directory
	RunDir string         // the VM's runtime directory
	PIDs   map[string]int // its processes, by what they are
	Files  []string       // that only root and the VM may read
	Write  []string       // files that only root may write
	// Dirs are directories that only root and the VM may list, and Sockets sockets that
	// only they may connect to.
	Dirs, Sockets []string
}

const gotThrough = ""

// tryAll makes every attempt and returns how each ended: gotThrough, or an error.
func tryAll(in []byte) (any, error) {
	var to targets
	if err := json.Unmarshal(in, &to); err != nil {
		return nil, err
	}
	ended := map[string]string{}
	for name, try := range attempts(to) {
		ended[name] = gotThrough
		if err := try(); err != nil {
			ended[name] = err.Error()
		}
	}
	return ended, nil
}

// attempts is everything a local user may try, by name. Each returns nil if it
// got through.
func attempts(to targets) map[string]func() error {
	all := map[string]func() error{
		"list the unit's credentials":   func() error { return readDir("/run/credentials/" + to.Unit) },
		"list the VM's directory":       func() error { return readDir(to.RunDir) },
		"put a file into it":            func() error { return create(to.RunDir + "/console.sock.x") },
		"put a VM's directory there":    func() error { return create(filepath.Dir(to.RunDir) + "/x") },
		"connect to any socket":         func() error { return connectToAny(to.PIDs) },
		"read the journal":              func() error { return readJournal(to.Unit) },
		"read the journal's files":      readJournalFiles,
		"kill the unit by its cgroup":   func() error { return openFor(to.Cgroup+"/cgroup.kill", unix.O_WRONLY) },
		"freeze the unit by its cgroup": func() error { return openFor(to.Cgroup+"/cgroup.freeze", unix.O_WRONLY) },
		"enter the unit's cgroup":       func() error { return openFor(to.Cgroup+"/cgroup.procs", unix.O_WRONLY) },
	}
	for _, f := range to.Files {
		all["read "+f] = func() error { return readSome(f) }
	}
	for _, f := range to.Write {
		all["write "+f] = func() error { return openFor(f, unix.O_WRONLY) }
	}
	for _, d := range to.Dirs {
		all["list "+d] = func() error { return readDir(d) }
	}
	for _, s := range to.Sockets {
		all["connect to "+s] = func() error { return connect(s) }
	}
	for who, pid := range to.PIDs {
		for what, try := range onProcess() {
			all[who+": "+what] = func() error { return try(pid) }
		}
		if who == "broker" {
			continue // it has none
		}
		all[who+": credentials through its root directory"] = func() error {
			return readDir(procPath(pid, "root/run/credentials", to.Unit))
		}
	}
	return all
}

// onProcess is what may be tried on another process.
func onProcess() map[string]func(pid int) error {
	all := map[string]func(pid int) error{
		"process_vm_readv": func(pid int) error {
			b := make([]byte, 1)
			_, err := unix.ProcessVMReadv(pid, []unix.Iovec{{Base: &b[0], Len: 1}}, []unix.RemoteIovec{{Base: 0, Len: 1}}, 0)
			if errors.Is(err, unix.EFAULT) {
				return nil // permitted, and nothing is at that address
			}
			return err
		},
		"ptrace": func(pid int) error {
			runtime.LockOSThread() // until this process ends, and the tracing with it
			return unix.PtraceSeize(pid)
		},
		"kill": func(pid int) error { return unix.Kill(pid, 0) },
		"signal by pidfd": func(pid int) error {
			return byPidfd(pid, func(fd int) error { return unix.PidfdSendSignal(fd, 0, nil, 0) })
		},
		"take a descriptor": func(pid int) error {
			return byPidfd(pid, func(fd int) error { _, err := unix.PidfdGetfd(fd, 0, 0); return err })
		},
		"limits":        func(pid int) error { return unix.Prlimit(pid, unix.RLIMIT_CORE, nil, &unix.Rlimit{}) },
		"list fd":       func(pid int) error { return readDir(procPath(pid, "fd")) },
		"open fd 0":     func(pid int) error { return openFor(procPath(pid, "fd/0"), unix.O_RDONLY) },
		"list root":     func(pid int) error { return readDir(procPath(pid, "root/")) },
		"list cwd":      func(pid int) error { return readDir(procPath(pid, "cwd/")) },
		"write mem":     func(pid int) error { return openFor(procPath(pid, "mem"), unix.O_RDWR) },
		"list mappings": func(pid int) error { return readDir(procPath(pid, "map_files")) },
	}
	for _, f := range []string{"environ", "maps", "smaps", "auxv", "pagemap", "mem", "io", "syscall", "stack"} {
		all[f] = func(pid int) error { return readSome(procPath(pid, f)) }
	}
	for _, link := range []string{"root", "cwd", "exe"} {
		all["where "+link+" is"] = func(pid int) error { _, err := os.Readlink(procPath(pid, link)); return err }
	}
	return all
}

func procPath(pid int, rest ...string) string {
	return filepath.Join("/proc", strconv.Itoa(pid)) + "/" + strings.Join(rest, "/")
}

func readDir(path string) error {
	_, err := os.ReadDir(path)
	return err
}

func openFor(path string, how int) error {
	fd, err := unix.Open(path, how|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	return unix.Close(fd)
}

func readSome(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if filepath.Base(path) == "mem" {
		return nil // that it opens is enough
	}
	if _, err = f.Read(make([]byte, 8)); errors.Is(err, io.EOF) {
		return nil // QEMU's environment is empty
	}
	return err
}

func create(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), os.Remove(path))
}

func connect(path string) error {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	return conn.Close()
}

func byPidfd(pid int, f func(fd int) error) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	return errors.Join(f(fd), unix.Close(fd))
}

func readJournal(unit string) error {
	out, err := exec.Command("journalctl", "--no-pager", "--quiet", "--output=cat", "--unit="+unit).Output()
	if len(out) > 0 {
		return nil
	}
	return errors.Join(errors.New("journalctl shows nothing"), err)
}

func readJournalFiles() error {
	files, _ := filepath.Glob("/run/log/journal/*/*")
	if len(files) == 0 {
		return readDir("/run/log/journal/" + machineID())
	}
	var last error
	for _, f := range files {
		if last = readSome(f); last == nil {
			return nil
		}
	}
	return fmt.Errorf("the last of %d: %w", len(files), last)
}

func machineID() string {
	b, _ := os.ReadFile("/etc/machine-id")
	return strings.TrimSpace(string(b))
}
