// SPDX-License-Identifier: Apache-2.0

package hostcheck

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/hypervisor/console"
	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/internal/trusted"
	"github.com/vmcred/vmcred/vm"
)

func shareField(i int) string { return fmt.Sprintf("shares[%d]", i) }

// Shares looks at each shared directory: whether it is one, and what the guest
// would get with it. A credential's own source in it is an error: the guest's root
// would read, and perhaps write, what it is given once and measured.
func (c *Checker) Shares() {
	for i, sh := range c.spec.Shares {
		field := shareField(i)
		if sh.Proto != "" && sh.Proto != "virtiofs" {
			c.Fault(field+".proto", strconv.Quote(sh.Proto)+" is not supported", `use "virtiofs"`)
			continue
		}
		if sh.Socket != "" {
			c.socket(field, sh.Socket)
		}
		// Another program's directory need not be this user's to look at.
		if sh.Socket == "" || sh.Source != "" && Exists(sh.Source) {
			c.share(field+".source", sh)
		}
		c.SharePlace(i)
		if sh.User == rootUser {
			c.Warn(field+".user", "its daemon is root: files get whatever owner and mode the guest's root likes, and a daemon that is taken over is root in its sandbox",
				"leave user: out, if it need not keep the owners of files")
		}
	}
}

func (c *Checker) socket(field, path string) {
	const hint = "its virtiofsd has to be started first; that of a unit is made by: systemctl daemon-reload"
	st, err := os.Stat(path)
	switch {
	case err != nil:
		c.Fault(field, reason(path, err), hint)
	case st.Mode().Type() != fs.ModeSocket:
		c.Fault(field, QuotePath(path)+" is "+console.KindOf(st.Mode())+", not a socket", hint)
	}
}

func (c *Checker) share(field string, sh vm.Share) {
	st := c.stat(field, sh.Source)
	if st == nil {
		return
	}
	if !st.IsDir() {
		c.Fault(field, QuotePath(sh.Source)+" is "+console.KindOf(st.Mode())+", not a directory", "")
		return
	}
	for _, cred := range c.spec.Credentials {
		if p := cred.Source.Path; p != "" && filepath.IsAbs(p) && covers(st, p) {
			c.Fault(field, fmt.Sprintf("%s holds %s, the source of the credential %s", QuotePath(sh.Source), QuotePath(p), cred.Host),
				"share another directory, or keep the credential elsewhere")
			return
		}
	}
	resolved, err := filepath.EvalSymlinks(sh.Source)
	if err != nil {
		c.Fault(field, reason(sh.Source, err), "")
		return
	}
	for _, p := range forbidden() {
		if covers(st, p.path) || p.within && within(resolved, p.path) {
			c.Fault(field, fmt.Sprintf("%s holds or is in %s: %s", QuotePath(sh.Source), p.path, p.why), "share another directory")
			return
		}
	}
	if why := secretDirectory(resolved); why != "" {
		c.Warn(field, fmt.Sprintf("%s looks like a directory of secrets (%s): the guest's root reads all of it at any time, and no record, check of sizes or proof is made of it",
			QuotePath(sh.Source), why), "give it the values it needs by credentials:")
	}
}

// ownShareUser begins the name of the user that a VM's shares have if none is named.
const ownShareUser = "vmshare-"

// SharePlace looks whether somebody else than the user whose rights a share's daemon
// has can have its path lead to another directory, now or before the daemon opens
// it: to one that this user may read, and he may not. Root's would be any.
func (c *Checker) SharePlace(i int) {
	sh := c.spec.Shares[i]
	if sh.User == "" || sh.User == ownShareUser+c.spec.Name || sh.Source == "" || sh.Socket == "" && os.Geteuid() != 0 {
		return // a user of its own, or this one: there is nothing to borrow
	}
	id, err := launch.Lookup(sh.User)
	if err != nil {
		return // shareAccess says so
	}
	fd, err := trusted.Place(sh.Source, int(id.UID))
	if err == nil {
		_ = unix.Close(fd) // only looked at
		return
	}
	t := (*trusted.Error)(nil)
	if !errors.As(err, &t) || !t.Foreign {
		return // what is missing or closed is found elsewhere
	}
	what := "who changes it has another directory shared with " + sh.User + "'s rights: " + err.Error()
	if id.UID == 0 {
		c.Fault(shareField(i)+".source", what, "share a directory on whose way all belongs to root, or name another user: for the share")
		return
	}
	c.Warn(shareField(i)+".source", what, "let all on its way belong to root or to "+sh.User)
}

type forbiddenPath struct {
	path   string
	within bool // a directory below it is as bad
	why    string
}

// forbidden are no VM's to see. A share that holds one of them is refused, as is
// all of the host.
func forbidden() []forbiddenPath {
	return []forbiddenPath{
		{"/run/credentials", true, "the secrets of the host's services"},
		{"/run/vmcred", true, "the sockets and records of running VMs"},
		{"/etc/vmcred", true, "what says which VM gets which secret"},
		{"/proc", true, "the host's processes and its kernel"},
		{"/sys", true, "the host's devices and its kernel"},
	}
}

// covers says whether the path lies in that directory, by whichever links and
// bind mounts. A path that is not there lies where it would be.
func covers(dir fs.FileInfo, path string) bool {
	for _, p := range []string{filepath.Clean(path), resolve(path)} {
		for ; ; p = filepath.Dir(p) {
			if st, err := os.Stat(p); err == nil && os.SameFile(dir, st) {
				return true
			}
			if p == "/" {
				break
			}
		}
	}
	return false
}

// resolve follows the links of what there is of the path.
func resolve(path string) string {
	rest := ""
	for p := filepath.Clean(path); ; p = filepath.Dir(p) {
		if real, err := filepath.EvalSymlinks(p); err == nil {
			return filepath.Join(real, rest)
		}
		if p == "/" {
			return path
		}
		rest = filepath.Join(filepath.Base(p), rest)
	}
}

func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// secretPlaces are patterns of directories that hold secrets, from where sops-nix,
// agenix, NixOps, systemd and clan put them.
func secretPlaces() []string {
	return []string{
		"/run/secrets*", "/run/agenix*", "/run/keys", "/run/user/*/secrets*", "/run/user/*/agenix*",
		"/etc/credstore*", "/run/credstore*", "/usr/lib/credstore*", "/var/lib/*/vars", "/var/lib/sops*",
	}
}

// secretDirectory says in a few words why a directory looks like one of secrets, or "".
func secretDirectory(dir string) string {
	for p := dir; p != "/"; p = filepath.Dir(p) {
		for _, pattern := range secretPlaces() {
			if ok, _ := path.Match(pattern, p); ok {
				return "by its place"
			}
		}
	}
	if onlyPrivate(dir) {
		return "its files are for their owner to read only"
	}
	return ""
}

// entriesMax is how many files of a directory are looked at.
const entriesMax = 1000

// onlyPrivate is true if there are files, and each is 0400 or 0600. It reads none.
func onlyPrivate(dir string) bool {
	f, err := os.Open(dir)
	if err != nil {
		return false
	}
	defer f.Close()
	entries, _ := f.ReadDir(entriesMax)
	files := 0
	for _, e := range entries {
		st, err := e.Info()
		if err != nil || !st.Mode().IsRegular() {
			continue
		}
		if m := st.Mode().Perm(); m != 0o400 && m != 0o600 {
			return false
		}
		files++
	}
	return files > 0
}
