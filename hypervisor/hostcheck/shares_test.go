// SPDX-License-Identifier: Apache-2.0

package hostcheck

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/vm"
)

// places is a tree with what shares can be, and a credential's source in a corner.
func places(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vmcred-shares-") // t.TempDir is closed to others
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	err = os.Chmod(dir, 0o755)
	for _, d := range []string{"data", "real/deep", "private", "mixed", "closed"} {
		err = errors.Join(err, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	for f, mode := range map[string]os.FileMode{"data/f": 0o644, "real/deep/key": 0o400, "private/a": 0o400, "private/b": 0o600, "mixed/a": 0o400, "mixed/b": 0o644} {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, f), []byte("x"), mode))
	}
	err = errors.Join(err, os.Symlink("real", filepath.Join(dir, "alias")), os.Symlink("deep/key", filepath.Join(dir, "real", "link")),
		os.Chmod(filepath.Join(dir, "closed"), 0o700))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return dir
}

func TestShares(t *testing.T) {
	dir := places(t)
	for what, tc := range map[string]struct {
		share  vm.Share
		source string // of the credential, below dir
		want   string // how the only problem begins, or nothing
	}{
		"a directory":       {vm.Share{Source: "data"}, "real/deep/key", ""},
		"missing":           {vm.Share{Source: "nope"}, "", "error: shares[0].source: DIR/nope: no such"},
		"a file":            {vm.Share{Source: "data/f"}, "", "error: shares[0].source: DIR/data/f is a regular file, not a directory"},
		"another protocol":  {vm.Share{Source: "data", Proto: "9p"}, "", `error: shares[0].proto: "9p" is not supported`},
		"served":            {vm.Share{Source: "data", Socket: "s"}, "", ""},
		"served, no source": {vm.Share{Socket: "s"}, "", ""},
		"not to be seen":    {vm.Share{Source: "nope", Socket: "s"}, "", ""},
		"not there":         {vm.Share{Source: "data", Socket: "nope"}, "", "error: shares[0]: DIR/nope: no such"},
		"no socket":         {vm.Share{Source: "data", Socket: "data/f"}, "", "error: shares[0]: DIR/data/f is a regular file, not a socket"},
		"root's":            {vm.Share{Source: "data", User: "root"}, "", "warning: shares[0].user: its daemon is root"},
		"holds the source":  {vm.Share{Source: "real"}, "real/deep/key", "error: shares[0].source: DIR/real holds DIR/real/deep/key, the source of the credential a"},
		"by a link":         {vm.Share{Source: "alias"}, "real/deep/key", "error: shares[0].source: DIR/alias holds"},
		"the other way":     {vm.Share{Source: "real/deep"}, "alias/link", "error: shares[0].source: DIR/real/deep holds"},
		"holds the link":    {vm.Share{Source: "real"}, "alias/link", "error: shares[0].source: DIR/real holds"},
		"not there yet":     {vm.Share{Source: "real"}, "alias/later/key", "error: shares[0].source: DIR/real holds"},
		"all of it":         {vm.Share{Source: "."}, "real/deep/key", "error: shares[0].source: DIR holds"},
		"the host":          {vm.Share{Source: "/"}, "", "error: shares[0].source: / holds or is in /run/credentials"},
		"processes":         {vm.Share{Source: "/proc/sys"}, "", "error: shares[0].source: /proc/sys holds or is in /proc: "},
		"configuration":     {vm.Share{Source: "/etc"}, "", "error: shares[0].source: /etc holds or is in /etc/vmcred"},
		"private files":     {vm.Share{Source: "private"}, "", "warning: shares[0].source: DIR/private looks like a directory of secrets (its files"},
		"mixed files":       {vm.Share{Source: "mixed"}, "", ""},
	} {
		t.Run(what, func(t *testing.T) {
			at := func(p string) string {
				if p == "" || filepath.IsAbs(p) {
					return p
				}
				return filepath.Join(dir, p)
			}
			sp := &vm.Spec{Shares: []vm.Share{tc.share}}
			sp.Shares[0].Source, sp.Shares[0].Socket = at(tc.share.Source), at(tc.share.Socket)
			if tc.source != "" {
				sp.Credentials = []vm.Credential{{Host: "a", Source: vm.Source{Kind: vm.SourceFile, Path: at(tc.source)}}}
			}
			c := New(sp)
			c.Shares()
			var got []string
			for _, p := range c.Problems() {
				got = append(got, p.Severity.String()+": "+strings.ReplaceAll(p.Error(), dir, "DIR"))
			}
			if len(got) > 1 || (len(got) == 0) != (tc.want == "") || len(got) == 1 && !strings.HasPrefix(got[0], tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

// TestShareByABindMount: another path to the same directory is the same directory.
func TestShareByABindMount(t *testing.T) {
	dir := places(t)
	if err := unix.Mount(filepath.Join(dir, "real"), filepath.Join(dir, "data"), "", unix.MS_BIND, ""); err != nil {
		t.Skipf("SKIPPED: needs to mount: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(filepath.Join(dir, "data"), unix.MNT_DETACH) })
	c := New(&vm.Spec{
		Shares:      []vm.Share{{Source: filepath.Join(dir, "data")}},
		Credentials: []vm.Credential{{Host: "a", Source: vm.Source{Kind: vm.SourceFile, Path: filepath.Join(dir, "real/deep/key")}}},
	})
	c.Shares()
	if len(c.Problems()) != 1 {
		t.Error(c.Problems())
	}
}

// TestSharePlace: who owns a directory or a link on the way could have root's daemon
// share all that root may read, also after the check.
func TestSharePlace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root can make another user's directory")
	}
	dir := places(t)
	for _, p := range []string{"real", "alias"} {
		if err := os.Lchown(filepath.Join(dir, p), 65534, 65534); err != nil {
			t.Fatal(err)
		}
	}
	const text = "shares[0].source: who changes it has another directory shared with "
	for what, tc := range map[string]struct {
		share vm.Share
		want  string // how the first problem begins, or nothing
	}{
		"on root's way":     {vm.Share{Source: "data", User: "root"}, ""},
		"another's":         {vm.Share{Source: "real", User: "root"}, ""}, // which cannot be replaced
		"in another's":      {vm.Share{Source: "real/deep", User: "root"}, "error: " + text + "root's rights: DIR/real belongs to user 65534"},
		"by another's link": {vm.Share{Source: "alias", User: "root"}, "error: " + text + "root's rights: DIR/alias belongs to user 65534"},
		"in a unit":         {vm.Share{Source: "real/deep", User: "root", Socket: "/run/x"}, "error: " + text + "root's rights: DIR/real"},
		"that user's own":   {vm.Share{Source: "real/deep", User: "nobody"}, ""},
		"a third user's":    {vm.Share{Source: "real/deep", User: "games"}, "warning: " + text + "games's rights: DIR/real"},
		"a user of its own": {vm.Share{Source: "real/deep"}, ""},
		"not there":         {vm.Share{Source: "nope", User: "root"}, ""},
	} {
		c := New(&vm.Spec{Shares: []vm.Share{tc.share}})
		c.spec.Shares[0].Source = filepath.Join(dir, tc.share.Source)
		c.SharePlace(0)
		got := ""
		for _, p := range c.Problems() {
			got += p.Severity.String() + ": " + strings.ReplaceAll(p.Error(), dir, "DIR")
		}
		if !strings.HasPrefix(got, tc.want) || (got == "") != (tc.want == "") {
			t.Errorf("%s: got %q, want %q", what, got, tc.want)
		}
	}
	c := New(&vm.Spec{Shares: []vm.Share{{Source: filepath.Join(dir, "alias"), User: "root"}}})
	if c.Shares(); len(vm.Problems(c.Problems()).Fatal()) != 1 {
		t.Errorf("Shares: %v", c.Problems())
	}
}

func TestSecretPlaces(t *testing.T) {
	for dir, want := range map[string]bool{
		"/run/secrets": true, "/run/secrets.d/3/x": true, "/run/agenix": true, "/etc/credstore.encrypted": true,
		"/var/lib/clan/vars/per-machine": true, "/run/keys": true, "/run/user/1000/secrets": true,
		"/nix/store": false, "/var/lib/clan": false, "/run/secret": false, "/srv/run/secrets": false,
	} {
		if got := secretDirectory(dir) != ""; got != want {
			t.Errorf("%s: %v", dir, got)
		}
	}
}

func TestShareAccess(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root can ask for other users")
	}
	dir := places(t)
	vmm := &launch.Identity{User: "vmcred-x", UID: 65531, GID: 65531}
	for what, tc := range map[string]struct {
		share vm.Share
		want  string
	}{
		"may read":             {vm.Share{Source: "data", User: "nobody", ReadOnly: true}, ""},
		"may not write":        {vm.Share{Source: "data", User: "nobody"}, "shares[0].source: DIR/data: nobody may not write it"},
		"may not enter":        {vm.Share{Source: "closed", User: "nobody", ReadOnly: true}, "shares[0].source: DIR/closed: nobody may not read it"},
		"root":                 {vm.Share{Source: "closed", User: "root"}, ""},
		"no user":              {vm.Share{Source: "data", User: "no-such-user"}, "shares[0].user: user no-such-user does not exist"},
		"nobody named":         {vm.Share{Source: "data"}, "shares[0].user: no user is named"},
		"may not connect":      {vm.Share{Source: "data", Socket: "s"}, "shares[0]: DIR/s: vmcred-x may not write it"},
		"the hypervisor's own": {vm.Share{Source: "data", User: "games"}, "shares[0].user: games is the hypervisor's own user"},
	} {
		t.Run(what, func(t *testing.T) {
			sp := &vm.Spec{Shares: []vm.Share{tc.share}, Boot: vm.Boot{Kernel: kernelIn(t, dir)}}
			sp.Shares[0].Source = filepath.Join(dir, tc.share.Source)
			if tc.share.Socket != "" {
				sp.Shares[0].Socket = filepath.Join(dir, tc.share.Socket)
				if err := os.Chmod(sp.Shares[0].Socket, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			id := vmm
			if tc.share.User == "games" {
				games, err := launch.Lookup("games")
				if err != nil {
					t.Fatal(err)
				}
				id = games
			}
			got := vm.Problems(Access(sp, nil, id)).Error()
			if got = strings.ReplaceAll(got, dir, "DIR"); !strings.HasPrefix(got, tc.want) || (got == "") != (tc.want == "") {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func kernelIn(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "kernel")
	if err := os.WriteFile(path, []byte("\x7fELF"), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}
