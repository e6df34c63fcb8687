// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// boot runs the guest in QEMU's software emulation and returns its console.
func boot(t *testing.T, cmdline string, args ...string) []byte {
	t.Helper()
	kernel := Build(t)
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		lack(t, "this test needs qemu-system-x86_64: install the package qemu-system-x86")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, qemu, append([]string{
		"-M", "q35", "-accel", "tcg", "-m", "128M", "-nodefaults", "-no-user-config", "-display", "none",
		"-serial", "stdio", "-action", "reboot=shutdown", "-kernel", kernel, "-append", cmdline,
	}, args...)...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("qemu: %v: %s", err, errs.Bytes())
	}
	return out
}

func sum(s string) Digest { return sha256.Sum256([]byte(s)) }

func TestGuestReportsWhatItWasGiven(t *testing.T) {
	initrd := filepath.Join(t.TempDir(), "initrd")
	if err := os.WriteFile(initrd, []byte(strings.Repeat("initrd", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", 200)
	out := boot(t, "some words noise", "-initrd", initrd,
		"-smbios", "type=11,value=hello,value="+long, "-fw_cfg", "name=opt/org.example/a,string=hey")
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	if !bytes.Contains(out, every) {
		t.Error("the 256 byte values did not arrive as they were written")
	}
	r, err := Parse(bytes.NewReader(out))
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if r.Platform != "q35" || r.Cmdline.SHA256 != sum("some words noise") {
		t.Errorf("platform %s, command line %+v", r.Platform, r.Cmdline)
	}
	if len(r.Initrds) != 1 || r.Initrds[0].SHA256 != sum(strings.Repeat("initrd", 1000)) {
		t.Errorf("initrds %+v", r.Initrds)
	}
	oem := r.OEM()
	if len(oem) != 1 || oem[0].Count != 2 || len(oem[0].Strings) != 2 || oem[0].Bytes != 5+6+201+1 {
		t.Fatalf("type 11: %+v", oem)
	}
	if s := oem[0].Strings; s[0].SHA256 != sum("hello") || s[1].SHA256 != sum(long) {
		t.Errorf("strings %+v", s)
	}
	last := r.FwCfg[len(r.FwCfg)-1]
	if last.Name != "opt/org.example/a" || last.Bytes != 3 || last.SHA256 != sum("hey") {
		t.Errorf("fw_cfg %+v", last)
	}
}

// Every length around SHA-256's block, so the guest's own sum is right.
func TestGuestHashesEveryLength(t *testing.T) {
	dir := t.TempDir()
	var args []string
	for n := range 16 {
		path := filepath.Join(dir, string(rune('a'+n)))
		if err := os.WriteFile(path, bytes.Repeat([]byte{0xa5}, 50+n), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "-fw_cfg", "name=opt/n/"+filepath.Base(path)+",file="+path)
	}
	r, err := Parse(bytes.NewReader(boot(t, "", append(args, "-global", "fw_cfg_io.x-file-slots=64")...)))
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, f := range r.FwCfg {
		if name, ok := strings.CutPrefix(f.Name, "opt/n/"); ok {
			n := 50 + int(name[0]-'a')
			if int(f.Bytes) != n || f.SHA256 != sum(strings.Repeat("\xa5", n)) {
				t.Errorf("%d bytes: %+v", n, f)
			}
			seen++
		}
	}
	if seen != 16 {
		t.Errorf("%d files, want 16", seen)
	}
}

func TestGuestWordsEndTheMachine(t *testing.T) {
	for _, word := range []string{"", WordReboot, WordPanic, WordAll} {
		t.Run("word "+word, func(t *testing.T) {
			if _, err := Parse(bytes.NewReader(boot(t, word))); err != nil {
				t.Error(err)
			}
		})
	}
}

// Builds that run at once give one file, and a broken one is built again.
func TestBuildIsShared(t *testing.T) {
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		lack(t, "this test needs gcc")
	}
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	var wg sync.WaitGroup
	paths, errs := make([]string, 3), make([]error, 3)
	for i := range paths {
		wg.Go(func() { paths[i], errs[i] = build(gcc) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if paths[0] != paths[1] || paths[1] != paths[2] {
		t.Errorf("three paths: %q", paths)
	}
	st, err := os.Stat(paths[0])
	if err != nil {
		t.Fatal(err)
	}
	if st.Size() > 40_000 {
		t.Errorf("%d bytes; the guest is meant to be small", st.Size())
	}
	if err := os.Truncate(paths[0], st.Size()/2); err != nil {
		t.Fatal(err)
	}
	if again, err := build(gcc); err != nil || again != paths[0] || !whole(again) {
		t.Errorf("after a cut: %q, %v", again, err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(paths[0]), "build-*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestBuildRefusesADirectoryOthersCanWrite(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", dir)
	if err := os.Mkdir(filepath.Join(dir, "vmcred-probe"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "vmcred-probe"), 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := cacheDir(); err == nil {
		t.Error("a directory that everyone can write to was taken")
	}
}
