// SPDX-License-Identifier: Apache-2.0

package testrun

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestBootFromDisk: a disk as cloud images are boots by its own boot loader, and the
// guest's service has the secrets bit by bit.
func TestBootFromDisk(t *testing.T) {
	needDiskTools(t)
	all := []credentialFile{
		{"host-api-key", []byte("a,b=c\nwith a newline\n")},
		{"host-db-password", bytesOf(t, 5000)}, // goes by fw_cfg
		{"host-jwt-secret", bytesOf(t, 300)},
	}
	h := newHost(t, qemu(), all)
	image := cloudImage(t, t.TempDir(), guestDirectory(t))
	disk := filepath.Join(h.dir, "disk.qcow2")
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	h.write(t, disk, b)
	if err := os.Chmod(disk, 0o600); err != nil {
		t.Fatal(err)
	}
	const nonce = "no-two-runs-alike"
	text := fmt.Sprintf("version: 1\nhypervisor: qemu\ncpus: 2\nmemory: 512MiB\nqemu: {accel: tcg}\nboot: {firmware: bios}\n"+
		"disks: [{path: %q}]\nguest: {systemd: 252}\nstatic: {DEMO_NONCE: %s, DEMO_ACTION: poweroff}\ncredentials:\n", disk, nonce)
	for _, c := range all {
		text += "  " + c.name + ": {}\n"
	}
	if err := os.WriteFile(h.file(), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	r := start(t, h.command(t, nil, "run", h.file(), "--credentials", h.creds))
	select {
	case <-r.ended:
	case <-time.After(5 * time.Minute):
		t.Fatalf("it does not end: %s\n%s", r.out.String(), r.err.String())
	}
	if code := r.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit status %d: %s", code, r.err.String())
	}
	for _, c := range all {
		want := fmt.Sprintf("demo: %s %d bytes sha256 %x\r", strings.TrimPrefix(c.name, "host-"), len(c.value), sha256.Sum256(append([]byte(nonce), c.value...)))
		if !strings.Contains(r.out.String(), want) {
			t.Errorf("the guest did not say %q: %s\n%s", want, r.out.String(), r.err.String())
		}
	}
	h.clean(t)
}

func bytesOf(t *testing.T, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return b
}

// needDiskTools skips, or fails where everything was to be there, what a disk cannot
// be made without.
func needDiskTools(t *testing.T) {
	t.Helper()
	var missing []string
	for tool, pkg := range map[string]string{"mke2fs": "e2fsprogs", "qemu-img": "qemu-utils", "grub-mkimage": "grub-common"} {
		if _, err := sbin(tool); err != nil {
			missing = append(missing, pkg)
		}
	}
	if _, err := os.Stat(grubDir); err != nil {
		missing = append(missing, "grub-pc-bin")
	}
	switch {
	case len(missing) == 0:
	case os.Getenv("CI") == "true":
		t.Fatalf("the disk cannot be made: apt install %s", strings.Join(missing, " "))
	default:
		t.Skipf("SKIPPED, nothing was shown: needs %s (scripts/install-deps test)", strings.Join(missing, ", "))
	}
}

// guestDirectory finds the Linux guest, or builds it.
func guestDirectory(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("VMCRED_GUEST"); dir != "" {
		return dir
	}
	var stderr strings.Builder
	cmd := exec.Command("../../examples/guest/build")
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("the guest cannot be built: %v\n%s", err, &stderr)
	}
	return strings.TrimSpace(string(out))
}
