// SPDX-License-Identifier: Apache-2.0

package hostcheck

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/vm"
)

// TestConsoleFileOfOthers: what a guest says goes into no file that someone else
// put there, to read along or to have another file of ours written to.
func TestConsoleFileOfOthers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: it makes files of several users: needs root")
	}
	const own, other = 64321, 64322
	id := &launch.Identity{UID: own, GID: own}
	for name, c := range map[string]struct {
		uid  int
		link bool
		want string // of the refusal; empty: it is taken
	}{
		"root's":               {uid: 0},
		"the VM's own user's":  {uid: own},
		"someone else's":       {uid: other, want: "belongs to user 64322"},
		"another file's name":  {uid: 0, link: true, want: "several names"},
		"of the VM's own user": {uid: own, link: true, want: "several names"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := touch(t, dir, "console")
			if err := os.Chown(path, c.uid, c.uid); err != nil {
				t.Fatal(err)
			}
			if c.link {
				if err := os.Link(path, filepath.Join(dir, "second")); err != nil {
					t.Fatal(err)
				}
			}
			check := New(&vm.Spec{Console: vm.Console{Mode: vm.ConsoleFile, Path: path}})
			check.consoleAccess(id)
			if c.want == "" {
				if len(check.problems) > 0 {
					t.Errorf("refused: %v", check.problems)
				}
				return
			}
			if len(check.problems) != 1 || !strings.Contains(check.problems[0].Message, c.want) || check.problems[0].Hint == "" {
				t.Errorf("before the start: %v", check.problems)
			}
		})
	}
}
