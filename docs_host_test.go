// SPDX-License-Identifier: Apache-2.0

package vmcred_test

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmcred/vmcred/config"
	"github.com/vmcred/vmcred/hypervisor/hypervisortest/probe"
	"github.com/vmcred/vmcred/internal/cli"
	"github.com/vmcred/vmcred/vm"
)

// TestMain lets a copy of this test's binary be the program.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "vmcred" {
		os.Exit(cli.Main(os.Args))
	}
	os.Exit(m.Run())
}

// nobody is whom the program runs as when the tests run as root.
const nobody = 65534

// patience ends a test that would hang. No outcome depends on it.
const patience = 2 * time.Minute

// host is a small world for one page: its VM's file, with each path in it below
// a directory of the test's, where that file is.
type host struct {
	root string
	page page
	spec *vm.Spec // as the page has it
	real bool     // with a real guest, not the probe
}

// newHost makes what the page speaks of. A page without a VM's file speaks of the
// one of docs/start.md.
func newHost(t *testing.T, p page) *host {
	t.Helper()
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("SKIPPED: needs qemu-system-x86_64 (apt install qemu-system-x86)")
	}
	from := p
	if len(p.ofLang("yaml")) == 0 {
		from = readPage(t, "docs/start.md")
	}
	text := from.ofLang("yaml")[0].text()
	spec, problems := config.Parse("/x/test-vm.yaml", []byte(text))
	if spec == nil {
		t.Fatal(problems)
	}
	root, err := os.MkdirTemp("", "vmcred-docs-")
	if err != nil {
		t.Fatal(err)
	}
	h := &host{root: root, page: p, spec: spec, real: p.showsGuest() && os.Getenv("VMCRED_GUEST") != ""}
	whole := false
	defer func() {
		if !whole {
			h.close()
		}
	}()
	if err := errors.Join(os.Chmod(root, 0o755), h.fill(t, text), h.giveAway()); err != nil {
		t.Fatal(err)
	}
	whole = true
	return h
}

// showsGuest says whether the page shows what the guest itself says.
func (p page) showsGuest() bool {
	return slices.ContainsFunc(p.ofLang("console"), func(b block) bool { return strings.Contains(b.text(), "demo: ") })
}

func (h *host) close() {
	if h != nil {
		_ = os.RemoveAll(h.root)
	}
}

func (h *host) fill(t *testing.T, text string) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	kernel, initrd := probe.Build(t), "LICENSE"
	if guest := os.Getenv("VMCRED_GUEST"); h.real {
		kernel, initrd = filepath.Join(guest, "vmlinuz"), filepath.Join(guest, "initrd")
	}
	var moved []string
	move := func(path string) string {
		moved = append(moved, path)
		return filepath.Join(h.root, path)
	}
	err = errors.Join(
		copyFile(exe, filepath.Join(h.root, "vmcred"), 0o755),
		copyFile(kernel, move(h.spec.Boot.Kernel), 0o644),
		copyFile(initrd, move(h.spec.Boot.Initrd), 0o644),
		os.Mkdir(filepath.Join(h.root, "runtime"), 0o700),
	)
	for _, c := range h.spec.Credentials {
		if c.Source.Path != "" {
			err = errors.Join(err, write(move(c.Source.Path), value(c.Host), 0o400))
		}
	}
	for _, dir := range h.spec.Guest.Units {
		for _, b := range h.page.ofLang("ini") {
			err = errors.Join(err, write(filepath.Join(move(dir), "my.service"), b.text(), 0o644))
		}
	}
	// The longest first, so that none is taken for the beginning of another.
	slices.SortFunc(moved, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
	var pairs []string
	for _, path := range moved {
		pairs = append(pairs, path, filepath.Join(h.root, path))
	}
	return errors.Join(err, write(filepath.Join(h.root, "config/vmcred/vms/test-vm.yaml"), strings.NewReplacer(pairs...).Replace(text), 0o644))
}

// value is a secret as long as the demo's of that name.
func value(host string) string {
	raw := make([]byte, 32)
	if strings.Contains(host, "jwt") {
		raw = make([]byte, 64)
	}
	_, _ = rand.Read(raw) // never fails, says its documentation
	return base64.StdEncoding.EncodeToString(raw)
}

func write(path, text string, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return errors.Join(os.WriteFile(path, []byte(text), mode), os.Chmod(path, mode))
}

func copyFile(from, to string, mode os.FileMode) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return write(to, string(b), mode)
}

// giveAway gives everything to whom the program runs as.
func (h *host) giveAway() error {
	if os.Geteuid() != 0 {
		return nil
	}
	return filepath.WalkDir(h.root, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, nobody, nobody))
	})
}

// run runs the program as an ordinary user and returns what it says on standard
// output and on standard error: apart, as one may be in the middle of the other.
func (h *host) run(t *testing.T, words []string) [2]string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(h.root, "vmcred"), words...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "XDG_CONFIG_HOME=" + filepath.Join(h.root, "config"), "XDG_RUNTIME_DIR=" + filepath.Join(h.root, "runtime"), "XDG_STATE_HOME=" + filepath.Join(h.root, "state")}
	cmd.Dir = h.root
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Errorf("vmcred %s: %v\n%s\n%s", strings.Join(words, " "), err, &stdout, &stderr)
	}
	return [2]string{stdout.String(), stderr.String()}
}

// check runs one command. It must succeed, warn of nothing, and say what the page shows.
func (h *host) check(t *testing.T, c command) {
	t.Helper()
	out := h.run(t, c.words[1:])
	for _, s := range out {
		if strings.Contains(s, "warning: ") || strings.Contains(s, "error: ") {
			t.Errorf("%s: %q says\n%s", c.where, c.words, s)
		}
	}
	if c.shown == nil {
		return
	}
	shown := c.shown
	if c.words[1] == "run" && !h.real {
		shown = slices.DeleteFunc(slices.Clone(shown), func(line string) bool { return strings.HasPrefix(line, "demo: ") })
	}
	inOrder(t, c, shown, out)
	if len(shown) < len(c.shown) {
		t.Skip("SKIPPED the guest's own lines: they need a real guest (VMCRED_GUEST=$(examples/guest/build))")
	}
}

const cut = "[…]"

// varies is what another machine may say in the page's place.
var varies = regexp.MustCompile(`software emulation, which is slower: \[…\]|process [0-9]+|qemu [0-9.]+|systemd [0-9]+ \(.*\)|landlock with scopes`)

// inOrder wants each line of the page in the output, in the order of its stream.
func inOrder(t *testing.T, c command, shown []string, out [2]string) {
	t.Helper()
	var rest [2][]string
	for i, s := range out {
		rest[i] = strings.Split(strings.ReplaceAll(s, "\r", ""), "\n")
	}
	for _, line := range shown {
		if line == cut {
			continue
		}
		pattern := regexp.QuoteMeta(varies.ReplaceAllString(line, cut))
		re := regexp.MustCompile("^" + strings.ReplaceAll(pattern, regexp.QuoteMeta(cut), ".*") + "$")
		found := false
		for i := range rest {
			if at := slices.IndexFunc(rest[i], re.MatchString); at >= 0 {
				rest[i], found = rest[i][at+1:], true
				break
			}
		}
		if !found {
			t.Errorf("%s: the page shows %q, which is not (or not there) in\n%s\n%s", c.where, line, out[0], out[1])
		}
	}
}

// What the tests leave: nothing.
func TestHostIsRemoved(t *testing.T) {
	h := newHost(t, readPage(t, "docs/start.md"))
	h.close()
	if _, err := os.Lstat(h.root); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left behind: %v", h.root, err)
	}
}
