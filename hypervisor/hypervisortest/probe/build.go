// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"crypto/sha256"
	"debug/elf"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

//go:embed guest
var sources embed.FS

// gcc compiles to 32-bit assembly first: the assembler then makes 64-bit
// objects of it, since most VMMs load ELF64 only (see guest/code32.h).
const (
	toAssembly = "-m32 -march=i686 -mgeneral-regs-only -O2 -std=gnu11 -Wall -Wextra -ffreestanding -fno-pic " +
		"-fno-stack-protector -fno-asynchronous-unwind-tables -fcf-protection=none -include code32.h -S"
	toObject = "-m64 -c"
	toFile   = "-m64 -nostdlib -static -no-pie -Wl,--build-id=none,-z,max-page-size=4096,-z,noexecstack,--no-warn-rwx-segments,-T,probe.ld"
	oldLink  = "-m64 -nostdlib -static -no-pie -Wl,--build-id=none,-z,max-page-size=4096,-z,noexecstack,-T,probe.ld"
)

// Build returns the path of the guest's ELF file, compiled at most once for
// these sources and this compiler and kept in the user's cache directory.
// Without gcc, or on another architecture than x86-64, the test is skipped,
// unless the environment says CI=true: then it fails.
func Build(t testing.TB) string {
	t.Helper()
	path, err := Make()
	var missing *LackError
	if errors.As(err, &missing) {
		lack(t, missing.What)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// LackError says what this machine cannot build the guest without.
type LackError struct{ What string }

func (e *LackError) Error() string { return e.What }

// Make is Build for a program that is no test. The error is a *LackError where the
// guest cannot be built on this machine.
func Make() (string, error) {
	if runtime.GOARCH != "amd64" {
		return "", &LackError{"the probe guest is for x86-64, this is " + runtime.GOARCH}
	}
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		return "", &LackError{"the probe guest needs gcc and binutils to be built: install the package gcc"}
	}
	path, err := build(gcc)
	if err != nil {
		return "", fmt.Errorf("building the probe guest: %w", err)
	}
	return path, nil
}

func lack(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("CI=true, and %s", what)
	}
	t.Skipf("SKIPPED, nothing was measured: %s", what)
}

func build(gcc string) (string, error) {
	version, err := exec.Command(gcc, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w", gcc, err)
	}
	dir, err := cacheDir()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "probe-"+sourceHash(version)+".elf")
	if whole(path) {
		return path, nil
	}
	work, err := os.MkdirTemp(dir, "build-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	if err := compile(gcc, work); err != nil {
		return "", err
	}
	made := filepath.Join(work, "probe.elf")
	if !whole(made) {
		return "", errors.New("the linker's output is no ELF64 file with a PVH note")
	}
	return path, os.Rename(made, path)
}

// cacheDir is a directory that only this user can write to.
func cacheDir() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		base = filepath.Join(os.TempDir(), fmt.Sprintf("vmcred-cache-%d", os.Getuid()))
	}
	dir := filepath.Join(base, "vmcred-probe")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	for _, d := range []string{base, dir} {
		st, err := os.Stat(d)
		if err != nil {
			return "", err
		}
		sys, ok := st.Sys().(*syscall.Stat_t)
		if !ok || sys.Uid != uint32(os.Getuid()) || st.Mode().Perm()&0o022 != 0 {
			return "", fmt.Errorf("%s can be written by others: set XDG_CACHE_HOME to a directory of your own", d)
		}
	}
	return dir, nil
}

func sourceHash(version []byte) string {
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%s\n%s\n%s\n", version, toAssembly, toObject, toFile)
	// An embedded tree is walked in the order of its names and cannot fail.
	_ = fs.WalkDir(sources, "guest", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := sources.ReadFile(name)
		fmt.Fprintf(h, "%s %d\n%s", name, len(b), b)
		return err
	})
	return hex.EncodeToString(h.Sum(nil)[:12])
}

func compile(gcc, work string) error {
	if err := os.CopyFS(work, mustSub()); err != nil {
		return err
	}
	names, err := filepath.Glob(filepath.Join(work, "*.c"))
	if err != nil {
		return err
	}
	objects := []string{"start.o"}
	steps := [][]string{args(toObject, "start.S", "-o", "start.o")}
	for _, n := range names {
		base := strings.TrimSuffix(filepath.Base(n), ".c")
		steps = append(steps, args(toAssembly, base+".c", "-o", base+".s"), args(toObject, base+".s", "-o", base+".o"))
		objects = append(objects, base+".o")
	}
	for _, s := range steps {
		if err := run(work, gcc, s); err != nil {
			return err
		}
	}
	link := append([]string{"-o", "probe.elf"}, objects...)
	if run(work, gcc, args(toFile, link...)) == nil {
		return nil
	}
	return run(work, gcc, args(oldLink, link...)) // binutils before 2.39 lack one of the options
}

func mustSub() fs.FS {
	sub, err := fs.Sub(sources, "guest")
	if err != nil {
		panic(err) // "guest" is a valid name
	}
	return sub
}

func args(flags string, more ...string) []string {
	return append(strings.Fields(flags), more...)
}

func run(dir, name string, arg []string) error {
	cmd := exec.Command(name, arg...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(arg, " "), err, out)
	}
	return nil
}

// whole says whether path is a complete ELF64 file with the PVH entry note.
func whole(path string) bool {
	f, err := elf.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	load, note := false, false
	for _, p := range f.Progs {
		b := make([]byte, p.Filesz)
		if _, err := p.ReadAt(b, 0); err != nil {
			return false
		}
		load = load || p.Type == elf.PT_LOAD
		note = note || p.Type == elf.PT_NOTE && strings.Contains(string(b), "Xen\x00")
	}
	return load && note && f.Class == elf.ELFCLASS64
}
