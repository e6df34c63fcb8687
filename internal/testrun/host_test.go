// SPDX-License-Identifier: Apache-2.0

package testrun

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vmcred/vmcred/hypervisor/hypervisortest/probe"
	"github.com/vmcred/vmcred/leak"
	"github.com/vmcred/vmcred/secret"
)

// patience is how long a test waits for what must come.
const patience = 60 * time.Second

// credentialFile is one value as a test hands it over.
type credentialFile struct {
	name  string // on the host
	value []byte
}

// host is a VM's file, its values, and the user who runs it.
type host struct {
	kind
	name  string // the VM's
	dir   string // holds all that follows, and may be entered by everyone
	uid   int
	creds string // the credentials directory
	run   string // the directory of the runtime directories
	all   []credentialFile
	more  string // lines of the VM's file
}

var hosts atomic.Int32

// newHost is for an ordinary user: another one than root, if that is who tests.
func newHost(t *testing.T, k kind, all []credentialFile) *host {
	t.Helper()
	uid := os.Geteuid()
	if uid == 0 {
		uid = 64000 + os.Getpid()%500
	}
	return newHostOf(t, k, uid, all)
}

// newHostOf makes a place where uid runs one VM. Nothing of it is left at the end.
func newHostOf(t *testing.T, k kind, uid int, all []credentialFile) *host {
	t.Helper()
	kernel := probe.Build(t)
	base, err := workDir()
	if err != nil {
		t.Fatal(err)
	}
	h := &host{kind: k, name: fmt.Sprintf("t%d-%dx", os.Getpid(), hosts.Add(1)), uid: uid, all: all}
	h.dir = filepath.Join(base, h.name)
	h.creds, h.run = filepath.Join(h.dir, "credentials"), filepath.Join(h.dir, "run")
	if uid == 0 {
		h.run = "/run"
	}
	t.Cleanup(func() {
		if pid := h.vmm(); pid != 0 { // only after a failure
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		for _, dir := range []string{h.locked(), h.runtime(), h.dir} { // root's are not below the last
			_ = os.RemoveAll(dir)
		}
	})
	elf, err := os.ReadFile(kernel)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{h.dir, h.creds, h.run} {
		h.mkdir(t, dir)
	}
	if err := os.Chmod(h.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(h.kernel(), elf, 0o644); err != nil {
		t.Fatal(err)
	}
	h.install(t)
	for _, c := range all {
		h.write(t, filepath.Join(h.creds, c.name), c.value)
	}
	return h
}

func (h *host) kernel() string { return filepath.Join(h.dir, "guest.elf") }
func (h *host) file() string   { return filepath.Join(h.dir, h.name+".yaml") }

// locked is the directory that says that the VM runs.
func (h *host) locked() string { return filepath.Join(h.run, "vmcred", h.name) }

// runtime is the VM's runtime directory: root's plain runs have theirs apart.
func (h *host) runtime() string {
	if h.uid == 0 {
		return filepath.Join(h.run, "vmcred", ".run", h.name)
	}
	return h.locked()
}

func (h *host) mkdir(t *testing.T, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil && !os.IsExist(err) {
		t.Fatal(err)
	}
	if dir == "/run" {
		return
	}
	if err := os.Chown(dir, h.uid, h.uid); err != nil && os.Geteuid() == 0 {
		t.Fatal(err)
	}
}

func (h *host) write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o400); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(path, h.uid, h.uid); err != nil {
			t.Fatal(err)
		}
	}
}

// spec writes the VM's file. word is what the guest does after its report, and
// source is what stands behind a credential's name.
func (h *host) spec(t *testing.T, word string, source func(name string) string) {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "version: 1\nhypervisor: %s\nmemory: 128MiB\nstop-timeout: 10m\n%s%s"+
		"boot: {kernel: %q, cmdline: %q}\nguest: {systemd: %d}\ncredentials:\n", h.kind.name, h.config, h.more, h.kernel(), word, h.systemd)
	for _, c := range h.all {
		fmt.Fprintf(&b, "  %s: {%s}\n", c.name, source(c.name))
	}
	if err := os.WriteFile(h.file(), []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

// bySource writes the VM's file for one of the ways a value gets in, and returns
// the arguments and variables that go with it.
func (h *host) bySource(t *testing.T, way, word string) (args, env []string) {
	t.Helper()
	h.spec(t, word, func(name string) string {
		switch way {
		case "file:":
			return "file: " + filepath.Join(h.creds, name)
		case "var:":
			return "var: " + filepath.Base(h.creds) + "/" + name
		}
		return ""
	})
	switch way {
	case "--credentials":
		args = []string{"--credentials", h.creds}
	case "--load-credential":
		for _, c := range h.all {
			args = append(args, "--load-credential", c.name+":"+filepath.Join(h.creds, c.name))
		}
	case "$CREDENTIALS_DIRECTORY":
		env = []string{"CREDENTIALS_DIRECTORY=" + h.creds}
	case "var:":
		env = []string{"VMCRED_VARS=" + filepath.Dir(h.creds)}
	}
	return args, env
}

// ways are all the ways a value gets in.
func ways() []string {
	return []string{"--credentials", "$CREDENTIALS_DIRECTORY", "file:", "--load-credential", "var:"}
}

func (h *host) env(more ...string) []string {
	path := os.Getenv("PATH")
	if h.copied != "" {
		path = h.bin() + ":" + path
	}
	env := append([]string{"PATH=" + path, "HOME=" + h.dir}, more...)
	if h.uid != 0 {
		return append(env, "XDG_RUNTIME_DIR="+h.run)
	}
	return append(env, "VMCRED_AUDIT="+filepath.Join(h.dir, "log", "audit.log")) // root's own is the machine's
}

// command is the program's, not started yet.
func (h *host) command(t *testing.T, env []string, args ...string) *exec.Cmd {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	return h.as(exec.Command(path, args...), env...)
}

// as makes c run as this host's user.
func (h *host) as(c *exec.Cmd, env ...string) *exec.Cmd {
	c.Env, c.Dir, c.WaitDelay = h.env(env...), "/", patience
	if h.uid != os.Geteuid() {
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(h.uid), Gid: uint32(h.uid)}}
	}
	return c
}

// text is base64 of n random bytes, as most secrets are.
func text(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return []byte(base64.StdEncoding.EncodeToString(b))
}

// search looks for this host's values; where they come from is meant to hold them.
func (h *host) search(t *testing.T, meant ...leak.Meant) *leak.Search {
	t.Helper()
	return searchOf(t, append(meant, leak.Under("where the values come from", h.creds), auditKey(h)), h)
}

const auditKeyName = "the audit log's key"

// auditKey is the audit log's own key, which is written from memory that no tracer
// can read. What stands in the file is searched as any other.
func auditKey(h *host) leak.Meant {
	return leak.Meant{Name: auditKeyName, Is: func(p leak.Place) bool {
		return p.Kind == leak.Write && p.Path == filepath.Join(h.dir, "log", "audit.log.key")
	}}
}

// searchOf looks for the values of several hosts at once.
func searchOf(t *testing.T, meant []leak.Meant, list ...*host) *leak.Search {
	t.Helper()
	arena := secret.NewArena()
	defer arena.Close()
	var needles []leak.Needle
	for _, h := range list {
		for _, c := range h.all {
			v, err := arena.Make(len(c.value), func(b []byte) (int, error) { return copy(b, c.value), nil })
			if err != nil {
				t.Fatal(err)
			}
			needles = append(needles, leak.Needle{Name: h.name + "/" + c.name, Value: v})
		}
	}
	n, err := leak.NewNeedles(needles...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	return leak.New(n, meant...)
}

func reportText(t *testing.T, s *leak.Search) string {
	t.Helper()
	var b strings.Builder
	if err := s.Report().WriteText(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// wantClean fails if a value is where it is not meant to be.
func wantClean(t *testing.T, s *leak.Search) {
	t.Helper()
	if s.Report().Places != 0 {
		t.Error(reportText(t, s))
	}
}
