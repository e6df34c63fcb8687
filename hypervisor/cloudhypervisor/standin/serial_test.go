// SPDX-License-Identifier: Apache-2.0

package standin_test

import (
	"bufio"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmcred/vmcred/hypervisor/hypervisortest/probe"
)

// What the guest wrote before a client comes is kept for it; a second client takes
// the place of the first; the file goes with the VM.
func TestSerialSocket(t *testing.T) {
	onBoth(t, func(t *testing.T, p program) {
		m := start(t, p, 1)
		socket := filepath.Join(m.dir, "console")
		body := strings.Replace(config("hang", ""), `"mode":"File","file":"SERIAL"`, `"mode":"Socket","socket":"DIR/console"`, 1)
		m.check(t, create(body))
		m.check(t, ok("PUT vm.boot"))
		first := dialSerial(t, socket)
		awaitLine(t, first, probe.Last)
		second := dialSerial(t, socket)
		if _, err := first.ReadByte(); err == nil {
			t.Error("the first client is still there beside a second")
		}
		m.check(t, ok("PUT vm.shutdown"))
		if _, err := second.ReadByte(); err == nil {
			t.Error("more output of a guest that hangs")
		}
		if _, err := os.Lstat(socket); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the socket's file after the VM: %v", err)
		}
		m.finish(t, starting, booting, booted, shutdown, deleted, ended)
	})
}

func dialSerial(t *testing.T, path string) *bufio.Reader {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return bufio.NewReader(c)
}

func awaitLine(t *testing.T, r *bufio.Reader, want string) {
	t.Helper()
	for {
		line, err := r.ReadString('\n')
		if strings.Contains(line, want) {
			return
		}
		if err != nil {
			t.Fatalf("no %q: %v", want, err)
		}
	}
}
