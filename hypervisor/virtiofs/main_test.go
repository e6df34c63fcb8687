// SPDX-License-Identifier: Apache-2.0

package virtiofs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/vmcred/vmcred/vm"
)

// connectEnv makes this binary connect to that socket, as whoever it runs as.
const connectEnv = "VMCRED_TEST_CONNECT"

// runnerEnv makes this binary a runner that has started a share of that directory.
const runnerEnv = "VMCRED_TEST_SHARE"

func TestMain(m *testing.M) {
	if source := os.Getenv(runnerEnv); source != "" {
		playRunner(source)
		return
	}
	if path := os.Getenv(connectEnv); path != "" {
		if _, err := connect(path, "share"); err != nil {
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// playRunner starts the daemon, says its number and lives until it is killed.
func playRunner(source string) {
	sh := vm.Share{Tag: "data", Source: source, ReadOnly: true}
	if os.Geteuid() == 0 {
		sh.User = "nobody"
	}
	dir, err := os.MkdirTemp("", "vmcred-share-run-")
	if err != nil {
		panic(err)
	}
	s, err := Start(context.Background(), []vm.Share{sh}, StartOptions{RunDir: dir})
	if err != nil {
		panic(err)
	}
	fmt.Println(s.running[0].PID(), dir)
	select {}
}

// rust is the supported daemon, or the test is skipped: Debian 12 has none.
func rust(t *testing.T) Options {
	t.Helper()
	d, err := Probe(t.Context(), Options{})
	if err != nil || d.Legacy {
		t.Skipf("SKIPPED: needs virtiofsd %s or newer on PATH (apt install virtiofsd on Debian 13, or cargo install virtiofsd); found %v, %v", oldest(), d, err)
	}
	return Options{Path: d.Path}
}

// legacy is the one of QEMU before 8.0, as Debian 12 has it.
func legacy(t *testing.T) Options {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: QEMU's old virtiofsd runs as root only")
	}
	const path = "/usr/lib/qemu/virtiofsd"
	if _, err := os.Stat(path); err != nil {
		t.Skip("SKIPPED: needs " + path + " (apt install qemu-system-common on Debian 12)")
	}
	return Options{Path: path}
}

// open is a directory that every user can enter, with a file in it.
func open(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vmcred-share-") // t.TempDir is closed to others
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(dir+"/file", []byte("x"), 0o644)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// share is one that this user may start: as nobody, if it is root.
func share(t *testing.T) vm.Share {
	t.Helper()
	sh := vm.Share{Tag: "data", Source: open(t), Proto: "virtiofs", ReadOnly: true}
	if os.Geteuid() == 0 {
		sh.User = "nobody"
	}
	return sh
}
