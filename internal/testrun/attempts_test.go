// SPDX-License-Identifier: Apache-2.0

package testrun

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// attempts is everything a user may try to learn what another process knows, or
// to get at it. Each returns nil if it got through.
func attempts() map[string]func(pid int) error {
	all := map[string]func(pid int) error{
		"memory by process_vm_readv": readMemory,
		"ptrace":                     seize,
		"pidfd_getfd":                takeDescriptor,
		"signal":                     func(pid int) error { return unix.Kill(pid, 0) },
		"signal by pidfd": func(pid int) error {
			return withPidfd(pid, func(fd int) error { return unix.PidfdSendSignal(fd, 0, nil, 0) })
		},
		"limits": func(pid int) error { return unix.Prlimit(pid, unix.RLIMIT_CORE, nil, &unix.Rlimit{}) },
		"performance counters": func(pid int) error {
			attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_TASK_CLOCK, Size: uint32(unsafe.Sizeof(unix.PerfEventAttr{}))}
			fd, err := unix.PerfEventOpen(&attr, pid, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
			return errors.Join(err, closeIf(fd, err))
		},
		"which pages it uses": func(pid int) error {
			_, _, errno := unix.Syscall6(unix.SYS_MOVE_PAGES, uintptr(pid), 0, 0, 0, 0, 0)
			return asError(errno)
		},
		"descriptors, opened": openDescriptors,
		"descriptors of threads": ofThreads(func(dir string) error {
			_, err := os.ReadDir(dir + "/fd")
			return err
		}),
		"mapped files, opened": openEach("map_files"),
		"root directory":       list("root/"),
		"working directory":    list("cwd/"),
		"descriptors":          list("fd"),
		"descriptors' details": list("fdinfo"),
	}
	for _, file := range []string{"environ", "maps", "smaps", "numa_maps", "auxv", "pagemap", "mem", "io", "syscall", "stack", "timers", "personality"} {
		all[file] = func(pid int) error { return readSome(proc(pid, file)) }
		all[file+" of threads"] = ofThreads(func(dir string) error { return readSome(filepath.Join(dir, file)) })
	}
	delete(all, "timers of threads") // there is no such file
	for _, link := range []string{"exe", "ns/mnt"} {
		all[link] = func(pid int) error {
			_, err := os.Readlink(proc(pid, link))
			return err
		}
	}
	return all
}

func proc(pid int, file string) string { return "/proc/" + strconv.Itoa(pid) + "/" + file }

func list(dir string) func(int) error {
	return func(pid int) error {
		_, err := os.ReadDir(proc(pid, dir))
		return err
	}
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
		return nil // empty, and readable
	}
	return err
}

// openEach opens every entry of a directory of /proc/PID.
func openEach(dir string) func(int) error {
	return func(pid int) error {
		entries, err := os.ReadDir(proc(pid, dir))
		for _, e := range entries {
			var f *os.File
			if f, err = os.Open(proc(pid, dir+"/"+e.Name())); err == nil {
				return f.Close()
			}
		}
		return err
	}
}

// openDescriptors needs no list: it guesses numbers.
func openDescriptors(pid int) error {
	err := fs.ErrNotExist
	for n := range 64 {
		fd, oerr := unix.Open(proc(pid, "fd/"+strconv.Itoa(n)), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		if oerr == nil {
			return unix.Close(fd)
		}
		if !errors.Is(oerr, unix.ENOENT) {
			err = oerr
		}
	}
	return err
}

func readMemory(pid int) error {
	b := make([]byte, 1)
	local := unix.Iovec{Base: &b[0], Len: 1}
	// Whoever may read the process gets EFAULT for an address that is not there.
	_, err := unix.ProcessVMReadv(pid, []unix.Iovec{local}, []unix.RemoteIovec{{Base: 4096, Len: 1}}, 0)
	if errors.Is(err, unix.EFAULT) {
		return nil
	}
	return err
}

func seize(pid int) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.PtraceSeize(pid); err != nil {
		return err
	}
	// Let go of it again, for the attempts to come.
	if err := unix.PtraceInterrupt(pid); err != nil {
		return err
	}
	if _, err := unix.Wait4(pid, nil, unix.WALL, nil); err != nil {
		return err
	}
	return unix.PtraceDetach(pid)
}

func takeDescriptor(pid int) error {
	return withPidfd(pid, func(fd int) error {
		got, err := unix.PidfdGetfd(fd, 0, 0)
		return errors.Join(err, closeIf(got, err))
	})
}

func withPidfd(pid int, f func(fd int) error) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	return errors.Join(f(fd), unix.Close(fd))
}

func closeIf(fd int, err error) error {
	if err != nil {
		return nil
	}
	return unix.Close(fd)
}

func asError(errno unix.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

// ofThreads tries something on every thread's directory. It got through when it
// did with one.
func ofThreads(try func(dir string) error) func(int) error {
	return func(pid int) error {
		entries, err := os.ReadDir(proc(pid, "task"))
		for _, e := range entries {
			if err = try(proc(pid, "task/"+e.Name())); err == nil {
				return nil
			}
		}
		return err
	}
}

// onPaths is what may be tried on a file, a directory or a socket by its path.
func onPaths() map[string]func(path string) error {
	return map[string]func(string) error{
		"list": func(path string) error {
			_, err := os.ReadDir(path)
			return err
		},
		"read": readSome,
		"make a file in": func(path string) error {
			f, err := os.CreateTemp(path, "")
			if err != nil {
				return err
			}
			return errors.Join(f.Close(), os.Remove(f.Name()))
		},
		"watch": func(path string) error {
			fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
			if err != nil {
				return err
			}
			_, err = unix.InotifyAddWatch(fd, path, unix.IN_OPEN)
			return errors.Join(err, unix.Close(fd))
		},
	}
}

// playAttacker answers each line "PID ATTEMPT" or "PATH ATTEMPT" with how it went.
func playAttacker() int {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		target, name, _ := strings.Cut(lines.Text(), " ")
		err := errors.New("no such attempt")
		if pid, nerr := strconv.Atoi(target); nerr == nil {
			if try, ok := attempts()[name]; ok {
				err = try(pid)
			}
		} else if try, ok := onPaths()[name]; ok {
			err = try(target)
		} else if try, ok := onSockets()[name]; ok {
			err = try(target)
		}
		switch {
		case err == nil:
			fmt.Println("done")
		case errors.Is(err, fs.ErrPermission):
			fmt.Printf("refused: %q\n", err.Error())
		default:
			fmt.Printf("failed: %q\n", err.Error())
		}
	}
	return 0
}
