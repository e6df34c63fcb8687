// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/vm"
)

// daemonAt is a program that is there, for systemd-analyze to find.
const daemonAt = "/bin/sh"

// sharing is a VM with one share of each kind.
func sharing() *vm.Spec {
	return &vm.Spec{Name: "x", Unit: "vmcred@x.service", Shares: []vm.Share{
		{Tag: "ro-store", Source: "/nix/store", ReadOnly: true},
		{Tag: `a/b$%"\x`, Source: `/srv/a "b" $c%d`, User: "someone"},
		{Tag: "root.1", Source: "/srv/root", User: "root"},
		{Tag: "served", Source: "/srv/served", Socket: "/run/other.sock"},
	}}
}

// shareFilesIn writes all files of the VM below a directory and returns their paths.
func shareFilesIn(t *testing.T, dir string, spec *vm.Spec, d Virtiofsd) []string {
	t.Helper()
	files, err := Files(spec, d)
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, f := range files {
		path := filepath.Join(dir, f.Path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, f.Text, 0o644)); err != nil {
			t.Fatal(err)
		}
		if filepath.Ext(path) == ".conf" {
			path = filepath.Join(dir, spec.Unit)
		}
		paths = append(paths, path)
	}
	return paths
}

func TestShareUnitsVerify(t *testing.T) {
	dir := filepath.Dir(instance(t))
	legacy := sharing()
	legacy.Shares = legacy.Shares[2:]
	for _, legacyToo := range []bool{false, true} {
		spec := sharing()
		if legacyToo {
			spec = legacy
		}
		for _, path := range shareFilesIn(t, dir, spec, Virtiofsd{Path: daemonAt, Legacy: legacyToo}) {
			if out, err := exec.Command("systemd-analyze", "verify", "--man=no", path).CombinedOutput(); err != nil || len(out) > 0 {
				t.Errorf("systemd-analyze verify %s: %v\n%s", path, err, out)
			}
		}
	}
}

// TestShareExposure keeps them shut: at most 1.3 of 10, with user: root 2.6.
func TestShareExposure(t *testing.T) {
	dir := filepath.Dir(instance(t))
	for _, path := range shareFilesIn(t, dir, sharing(), Virtiofsd{Path: daemonAt}) {
		name, threshold := filepath.Base(path), "--threshold=13"
		if filepath.Ext(name) != ".service" || name == "vmcred@x.service" {
			continue
		}
		if strings.Contains(name, "root") {
			threshold = "--threshold=26"
		}
		out, err := exec.Command("systemd-analyze", "security", "--offline=yes", threshold, "--no-pager", path).CombinedOutput()
		if err != nil {
			t.Errorf("systemd-analyze security %s: %v\n%s", name, err, out)
		}
	}
}

// TestShareUnits holds what the daemon and the VM depend on.
func TestShareUnits(t *testing.T) {
	files, err := Files(sharing(), Virtiofsd{Path: "/usr/libexec/virtiofsd"})
	if err != nil {
		t.Fatal(err)
	}
	texts := map[string]string{}
	for _, f := range files {
		texts[f.Path] = string(f.Text)
	}
	if len(texts) != 7 {
		t.Fatalf("%d files", len(texts))
	}
	for path, lines := range map[string][]string{
		"vmcred@x.service.d/vmcred.conf": {
			`Requires=vmcred-share-x-ro\x2dstore.socket`, `After=vmcred-share-x-ro\x2dstore.socket vmcred-share-x-ro\x2dstore.service`,
			"#   vmcred units x --output /etc/systemd/system",
		},
		`vmcred-share-x-ro\x2dstore.socket`: {
			`ListenStream=/run/vmcred-share/x/ro\x2dstore.sock`, "SocketUser=vmcred-x", "SocketMode=0600", "PartOf=vmcred@x.service",
			"Wants=vmcred-user@x.service", "After=vmcred-user@x.service",
		},
		`vmcred-share-x-ro\x2dstore.service`: {
			"ExecStart=/usr/libexec/virtiofsd --fd=3 --shared-dir=/nix/store --sandbox=none --inode-file-handles=never --log-level=warn --readonly --rlimit-nofile=0",
			"User=vmshare-x", "BindReadOnlyPaths=/nix/store", "TemporaryFileSystem=/:ro", "CapabilityBoundingSet=", "OnFailure=vmcred-share-lost@x.service",
			"Wants=vmcred-share-user@x.service", "After=vmcred-share-user@x.service",
		},
		`vmcred-share-x-a\x2fb\x24\x25\x22\x5cx.service`: {
			`ExecStart=/usr/libexec/virtiofsd --fd=3 "--shared-dir=/srv/a \"b\" $$c%%d" --sandbox=none --inode-file-handles=never --log-level=warn --rlimit-nofile=0`,
			"User=someone", `BindPaths="/srv/a \"b\" $c%%d"`,
		},
		"vmcred-share-x-root.1.service": {"User=root", "BindPaths=/srv/root"},
	} {
		have := strings.Split(texts[path], "\n")
		for _, line := range lines {
			if !slices.Contains(have, line) {
				t.Errorf("%s lacks %s:\n%s", path, line, texts[path])
			}
		}
	}
	for path, text := range texts {
		if by := strings.Contains(text, "vmcred-share-user@"); by != (path == `vmcred-share-x-ro\x2dstore.service`) {
			t.Errorf("%s waits for the shares' user: %v", path, by)
		}
		if strings.Contains(text, "served") {
			t.Errorf("%s names a share that another program serves", path)
		}
	}
}

func TestSharesWithoutUnits(t *testing.T) {
	foreign := sharing()
	foreign.Unit = "microvm@x.service"
	files, err := Files(foreign, Virtiofsd{})
	if err != nil || len(files) != 1 || strings.Contains(string(files[0].Text), "share") {
		t.Errorf("%v, %v", files, err)
	}
	for what, spoil := range map[string]func(*vm.Share){
		"a long tag":   func(s *vm.Share) { s.Tag = strings.Repeat("/", 36) },
		"a colon":      func(s *vm.Share) { s.Source = "/srv/a:b" },
		"a newline":    func(s *vm.Share) { s.Source = "/srv/a\nExecStart=/bin/x" },
		"not absolute": func(s *vm.Share) { s.Source = "srv" },
	} {
		spec := sharing()
		spoil(&spec.Shares[0])
		_, err := Files(spec, Virtiofsd{Path: "/x"})
		var se *ShareError
		if !errors.As(err, &se) || se.Hint() == "" {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := Files(sharing(), Virtiofsd{Path: "/x", Legacy: true}); err == nil || !strings.Contains(err.Error(), "runs as root only") {
		t.Errorf("%v", err)
	}
}

// No two shares have a unit or a socket in common, whatever their VMs and tags are
// called, and nobody's files are taken for another's.
func TestShareNamesAreDifferent(t *testing.T) {
	words := func(letters string) []string {
		all := []string{""}
		for i := 0; len(all[i]) < 3; i++ {
			for _, l := range letters {
				all = append(all, all[i]+string(l))
			}
		}
		return all[1:]
	}
	names, units, sockets := []string{}, map[string]bool{}, map[string]bool{}
	for _, n := range words("ax-") {
		if strings.Trim(n, "-") == n {
			names = append(names, n)
		}
	}
	for _, n := range names {
		for _, tag := range words(`a-/.\x`) {
			u, s := shareUnit(n, tag), ShareSocket(n, tag)
			if units[u] || sockets[s] {
				t.Errorf("%s of %s: another has %s or %s", tag, n, u, s)
			}
			units[u], sockets[s] = true, true
			for _, other := range names {
				if IsShareUnit(other, u+".socket") != (other == n) {
					t.Fatalf("whose is %s.socket: %s's or %s's?", u, n, other)
				}
			}
		}
	}
}

// TestEscapeIsSystemds: but for the slash, which it means as a path's.
func TestEscapeIsSystemds(t *testing.T) {
	if _, err := exec.LookPath("systemd-escape"); err != nil {
		t.Skip("SKIPPED: needs systemd-escape (package systemd)")
	}
	var all strings.Builder
	for c := byte('!'); c <= '~'; c++ {
		if c != '/' {
			all.WriteByte(c)
		}
	}
	for _, word := range []string{all.String(), "ro-store", ".x", "a.b"} {
		out, err := exec.Command("systemd-escape", "--", word).Output()
		if got := escapeName(word); err != nil || got != strings.TrimSpace(string(out)) {
			t.Errorf("%q is %s, systemd has %s (%v)", word, got, out, err)
		}
	}
}
