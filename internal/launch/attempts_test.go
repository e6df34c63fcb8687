// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// prlimit is the one attempt that gets through between processes of one user:
// no part of Landlock covers it (prlimit(2)). It can end a runner, but not read it.
const prlimit = "prlimit"

// sessionKey is the attempt to read a key that a runner has, see giveKey.
const sessionKey = "session key"

// attempts is everything a taken over VMM may try on another process. Each
// returns nil if it got through.
func attempts() map[string]func(pid int) error {
	all := map[string]func(pid int) error{
		"readv":  readMemory,
		"ptrace": attach,
		"kill":   func(pid int) error { return unix.Kill(pid, 0) },
		"tgkill": func(pid int) error { return unix.Tgkill(pid, pid, 0) },
		"pidfd signal": func(pid int) error {
			return withPidfd(pid, func(fd int) error { return unix.PidfdSendSignal(fd, 0, nil, 0) })
		},
		"pidfd getfd": func(pid int) error {
			return withPidfd(pid, func(fd int) error {
				_, err := unix.PidfdGetfd(fd, 0, 0)
				return err
			})
		},
		prlimit: func(pid int) error {
			return unix.Prlimit(pid, unix.RLIMIT_CORE, nil, &unix.Rlimit{})
		},
		// The thread that forked us is in our own domain.
		"kill threads":   ofThreads(func(_, tid int) error { return unix.Kill(tid, 0) }),
		"tgkill threads": ofThreads(func(pid, tid int) error { return unix.Tgkill(pid, tid, 0) }),
		"ptrace threads": ofThreads(func(_, tid int) error { return attach(tid) }),
		"readv threads":  ofThreads(func(_, tid int) error { return readMemory(tid) }),
	}
	all[sessionKey] = func(int) error { return readKey() }
	all["timers"] = func(pid int) error { return readSome(procPath(pid, "timers")) }
	for _, file := range []string{"environ", "maps", "smaps", "auxv", "pagemap", "mem", "io", "syscall", "stack"} {
		all[file] = func(pid int) error { return readSome(procPath(pid, file)) }
		all[file+" of threads"] = ofThreads(func(pid, tid int) error {
			return readSome(procPath(pid, "task", strconv.Itoa(tid), file))
		})
	}
	for _, link := range []string{"root", "cwd", "exe"} {
		all[link] = func(pid int) error {
			_, err := os.Readlink(procPath(pid, link))
			return err
		}
	}
	all["root directory"] = func(pid int) error { return readDir(procPath(pid, "root") + "/") }
	all["fd"] = func(pid int) error { return readDir(procPath(pid, "fd")) }
	all["fd of threads"] = ofThreads(func(pid, tid int) error {
		return readDir(procPath(pid, "task", strconv.Itoa(tid), "fd"))
	})
	all["fd 0"] = func(pid int) error {
		_, err := os.Open(procPath(pid, "fd", "0"))
		return err
	}
	return all
}

func procPath(pid int, rest ...string) string {
	return filepath.Join(append([]string{"/proc", strconv.Itoa(pid)}, rest...)...)
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
	_, err = f.Read(make([]byte, 64))
	return err
}

func readDir(path string) error {
	_, err := os.ReadDir(path)
	return err
}

func readMemory(pid int) error {
	b := make([]byte, 1)
	local := unix.Iovec{Base: &b[0], Len: 1}
	// The same program lies at the same place without ASLR of its text.
	remote := unix.RemoteIovec{Base: uintptr(unsafe.Pointer(unsafe.StringData(partEnv))), Len: 1}
	_, err := unix.ProcessVMReadv(pid, []unix.Iovec{local}, []unix.RemoteIovec{remote}, 0)
	return err
}

func attach(pid int) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// PTRACE_SEIZE does not stop its target.
	return unix.PtraceSeize(pid)
}

func withPidfd(pid int, f func(fd int) error) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	return errors.Join(f(fd), unix.Close(fd))
}

// ofThreads tries something on every thread of a process. It got through when it
// did with one.
func ofThreads(try func(pid, tid int) error) func(int) error {
	return func(pid int) error {
		entries, err := os.ReadDir(procPath(pid, "task"))
		if err != nil {
			return err
		}
		var last error
		for _, e := range entries {
			tid, err := strconv.Atoi(e.Name())
			if err != nil {
				return err
			}
			if last = try(pid, tid); last == nil {
				return nil
			}
		}
		return fmt.Errorf("the last of %d threads: %w", len(entries), last)
	}
}
