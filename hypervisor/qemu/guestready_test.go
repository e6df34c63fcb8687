// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/vm"
)

// newer is the Debian suite whose systemd, 257, tells its host that it is up;
// Debian 12's, 252, does not.
const newer = "trixie"

// newerGuest is a small Debian guest of that suite, built if it must be.
func newerGuest(t *testing.T, id *launch.Identity) vm.Boot {
	t.Helper()
	if testing.Short() {
		t.Skip("SKIPPED with -short: a Debian guest in software emulation")
	}
	var stderr bytes.Buffer
	cmd := exec.Command("../../examples/guest/build", "--suite", newer)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("the guest cannot be built: %v\n%s", err, &stderr)
	}
	dir := strings.TrimSpace(string(out))
	cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		t.Fatal(err)
	}
	b := vm.Boot{Kernel: filepath.Join(dir, "vmlinuz"), Initrd: filepath.Join(dir, "initrd"), Cmdline: strings.TrimSpace(string(cmdline))}
	if id != nil {
		public, err := os.MkdirTemp("", "vmcred-ready-") // the cache is closed to other users
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(public) })
		if err := os.Chmod(public, 0o755); err != nil {
			t.Fatal(err)
		}
		sp := &vm.Spec{Boot: b}
		lend(t, sp, public)
		b = sp.Boot
	}
	return b
}

// sayings keeps what a guest said, and tells of READY=1.
type sayings struct {
	mu    sync.Mutex
	all   []string
	ready chan struct{}
}

func (s *sayings) handle(c net.Conn) {
	b := make([]byte, 4<<10)
	n, _ := c.Read(b)
	_ = c.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, string(b[:n]))
	if slices.Contains(strings.Split(string(b[:n]), "\n"), "READY=1") {
		select {
		case <-s.ready:
		default:
			close(s.ready)
		}
	}
}

// TestReadyOfSystemd: Debian's own systemd finds the address behind its credentials
// and says over vsock that it is up, with nothing of ours in the guest.
func TestReadyOfSystemd(t *testing.T) {
	needDaemon(t)
	_, info, sp := installed(t)
	d := withDaemon()
	var id *launch.Identity
	if os.Geteuid() == 0 {
		id = &launch.Identity{UID: 65531, GID: 65531}
	}
	sp.Boot, sp.Memory, sp.Guest.Systemd = newerGuest(t, id), 256<<20, 257
	sp.Vsock = &vm.Vsock{CID: 42}
	const port = 1_000_000_042
	set := values(t, map[string]string{"HOST_API_KEY": strings.Repeat("k", 44), "LONG": strings.Repeat("long", 20_000)})
	if err := set.AddStatic(credential.NotifySocket, fmt.Sprintf("vsock-stream:2:%d", port)); err != nil {
		t.Fatal(err)
	}
	l, out := launchOf(t, d, info, sp, set)
	l.Identity = id
	s := &sayings{ready: make(chan struct{})}
	l.Ports = map[uint32]func(net.Conn){port: s.handle}
	m := begin(t, d, l)
	select {
	case <-s.ready:
	case <-m.(*machine).Over():
		t.Fatalf("the VM ended before: %q\n%s%s", s.all, out.console.String(), out.log.String())
	}
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	t.Logf("the guest said %q", s.all)
	if out.log.String() != "" {
		t.Errorf("the log has %q", out.log.String())
	}
}
