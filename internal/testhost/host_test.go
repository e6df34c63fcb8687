// SPDX-License-Identifier: Apache-2.0

//go:build linux && amd64

// Package testhost tests VMs in units: a real systemd as a host's PID 1, in a
// container, starts a real guest with a real systemd.
package testhost

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	unitName = "vmcred@test-vm.service"
	vmUser   = "vmcred-test-vm"
	other    = "vmcred-other" // the user of another VM
	vmFile   = "/etc/vmcred/vms/test-vm.yaml"
	runDir   = "/run/vmcred/test-vm"
	sources  = "/run/secrets"
)

// credentials are the page's, by their name in the guest's service.
func credentials() map[string]string {
	return map[string]string{"api-key": "HOST_API_KEY", "db-password": "HOST_DB_PASSWORD", "jwt-secret": "HOST_JWT_SECRET"}
}

// host is the container with the page's VM.
type host struct {
	*container
	page    *page
	journal *journal
	nonce   string
	every   map[string]string // each value there ever was, by a name of its own
	starts  []string          // invocation ids
}

// guestDirectory finds the guest, or builds it.
func guestDirectory(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("VMCRED_GUEST"); dir != "" {
		return dir
	}
	var stderr bytes.Buffer
	cmd := exec.Command("../../examples/guest/build")
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("the guest cannot be built: %v\n%s", err, &stderr)
	}
	return strings.TrimSpace(string(out))
}

// setUp boots the host and does what the page says until the first start.
func setUp(t *testing.T) *host {
	t.Helper()
	needs(t)
	guest := guestDirectory(t)
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	h := &host{page: readPage(t, "../../docs/systemd.md"), nonce: rand.Text(), every: map[string]string{}}
	dir := t.TempDir()
	dest := filepath.Join(dir, "dest")
	h.page.install(t, "../..", dest, filepath.Join(dir, "build"))
	h.container = boot(t, dir, append(newerBinds(t), "--bind="+filepath.Join(dest, "usr/local")+":/usr/local",
		"--bind-ro="+guest+":/var/lib/vmcred/images/demo", "--bind-ro="+program+":"+self, "--bind-ro="+program+":"+vmmDir+"/cloud-hypervisor")...)
	h.do(t, "useradd --system --user-group --groups kvm --no-create-home --shell /usr/sbin/nologin "+other)
	// systemd forgets a unit that has ended well and that none knows of, with how it ended.
	h.write(t, "/etc/systemd/system/test.target.d/known.conf", "[Unit]\nAfter="+unitName+"\n")
	h.page.follow(t, h.container, "The broker")
	h.page.follow(t, h.container, "The VM")
	h.writeVM(t)
	h.page.follow(t, h.container, "The secrets")
	h.remember(t)
	for _, said := range h.page.follow(t, h.container, "Its unit") {
		if strings.Contains(said, "error") || strings.Contains(said, "warning") {
			t.Errorf("mistakes where there are none: %s", said)
		}
	}
	h.journal = followJournal(t, h.container, unitName)
	return h
}

// writeVM writes the page's VM file with more static credentials and settings.
func (h *host) writeVM(t *testing.T, more ...string) {
	t.Helper()
	text := h.page.file(t, vmFile)
	if !strings.Contains(text, "\nstatic:\n") {
		t.Fatal("the page's VM has no static credentials to add to")
	}
	// A guest on a busy machine may need longer than the default.
	more = append([]string{"  DEMO_NONCE: " + h.nonce}, append(more, "stop-timeout: 2m")...)
	h.write(t, vmFile, text+strings.Join(more, "\n")+"\n")
}

// remember reads the values as they are now.
func (h *host) remember(t *testing.T) map[string]string {
	t.Helper()
	now := map[string]string{}
	for name := range credentials() {
		b, err := os.ReadFile(h.path(filepath.Join(sources, name)))
		if err != nil {
			t.Fatal(err)
		}
		now[name] = string(b)
		h.every[name+" "+digest("", now[name])[:8]] = now[name]
	}
	return now
}

// show returns one property of the unit.
func (h *host) show(t *testing.T, property string) string {
	t.Helper()
	return strings.TrimSpace(h.do(t, "systemctl show --value --property="+property+" "+unitName))
}

func (h *host) want(t *testing.T, properties map[string]string) {
	t.Helper()
	for property, want := range properties {
		if got := h.show(t, property); got != want {
			t.Errorf("%s=%s, want %s", property, got, want)
		}
	}
}

// started notes the invocation that runs now.
func (h *host) started(t *testing.T) string {
	t.Helper()
	id := h.show(t, "InvocationID")
	if id == "" || slices.Contains(h.starts, id) {
		t.Fatalf("invocation %q is no new one", id)
	}
	h.starts = append(h.starts, id)
	return id
}

// heard returns the guest's words on its console, which is the journal.
func (h *host) heard(t *testing.T, invocation string) []string {
	t.Helper()
	const sign = "demo: "
	h.journal.wait(t, "the guest's last word", func(r record) bool {
		return r.invocation() == invocation && r.message() == sign+"done"
	})
	var said []string
	for _, r := range h.records(t, invocation) {
		if line, ok := strings.CutPrefix(r.message(), sign); ok {
			said = append(said, line)
		}
	}
	return said
}

// listen returns the guest's words on its console, which is a socket. It goes
// on reading afterwards, so that the guest does not wait for us.
func (h *host) listen(t *testing.T) []string {
	t.Helper()
	conn, err := net.Dial("unix", h.path(runDir+"/console.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	var said []string
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		line, ok := strings.CutPrefix(strings.TrimRight(lines.Text(), "\r"), "demo: ")
		if !ok {
			continue
		}
		said = append(said, line)
		if line == "done" {
			go func() {
				_ = conn.SetReadDeadline(time.Time{})
				for lines.Scan() {
				}
			}()
			return said
		}
	}
	t.Fatalf("the guest ended after %q: %v", said, lines.Err())
	return nil
}

func digest(nonce, value string) string {
	sum := sha256.Sum256([]byte(nonce + value))
	return hex.EncodeToString(sum[:])
}

// wantArrived compares the guest's words with the host's values.
func (h *host) wantArrived(t *testing.T, said []string, values map[string]string) {
	t.Helper()
	sizes := map[string]int{"api-key": 44, "db-password": 44, "jwt-secret": 88}
	for name, value := range values {
		line := fmt.Sprintf("%s %d bytes sha256 %s", name, sizes[name], digest(h.nonce, value))
		if !slices.Contains(said, line) {
			t.Errorf("the guest did not say %q; it said\n  %s", line, strings.Join(said, "\n  "))
		}
	}
	for _, line := range []string{"environment value test", "cluster value example-host"} {
		if !slices.Contains(said, line) {
			t.Errorf("the guest did not say %q", line)
		}
	}
}

// processes returns the runner and its VMM, as the container numbers them.
func (h *host) processes(t *testing.T) map[string]int {
	t.Helper()
	runner, err := strconv.Atoi(h.show(t, "MainPID"))
	if err != nil || runner == 0 {
		t.Fatalf("the unit has no main process: %v", err)
	}
	children := strings.Fields(h.do(t, fmt.Sprintf("cat /proc/%d/task/*/children", runner)))
	if len(children) != 1 {
		t.Fatalf("the runner's children are %q, want QEMU alone", children)
	}
	vmm, err := strconv.Atoi(children[0])
	if err != nil {
		t.Fatal(err)
	}
	return map[string]int{"runner": runner, "QEMU": vmm}
}
