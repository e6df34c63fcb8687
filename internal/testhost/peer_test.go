// SPDX-License-Identifier: Apache-2.0

//go:build linux && amd64

package testhost

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/internal/peer"
)

// peerSocket is where a server tells everybody who asks, who that is.
const peerSocket = "/run/who.sock"

// question is how somebody asks it.
type question struct {
	Name   string // to bind, "@" for an abstract one
	Cgroup string // to make below one's own, and to go there
}

// answered is what it says.
type answered struct {
	peer.Peer
	Error string
}

// servePeers is that server: a unit's main process, whose socket systemd made.
func servePeers([]byte) (any, error) {
	l, err := net.FileListener(os.NewFile(3, "socket")) // sd_listen_fds(3)
	if err != nil {
		return nil, err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return nil, err
		}
		var a answered
		p, err := peer.Of(c.(*net.UnixConn))
		if err == nil {
			a.Peer, err = *p, errors.Join(p.Check(), p.Close())
		}
		if err != nil {
			a.Error = err.Error()
		}
		_ = json.NewEncoder(c).Encode(a)
		_ = c.Close()
	}
}

// askPeers asks it.
func askPeers(in []byte) (any, error) {
	var q question
	if err := json.Unmarshal(in, &q); err != nil {
		return nil, err
	}
	if q.Cgroup != "" {
		if err := enterBelow(q.Cgroup); err != nil {
			return nil, err
		}
	}
	var local *net.UnixAddr
	if q.Name != "" {
		local = &net.UnixAddr{Net: "unix", Name: q.Name}
	}
	c, err := net.DialUnix("unix", local, &net.UnixAddr{Net: "unix", Name: peerSocket})
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(c)
	return json.RawMessage(b), err
}

// enterBelow makes a control group below one's own and goes there.
func enterBelow(name string) error {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	_, path, _ := strings.Cut(strings.TrimSpace(string(own)), "0::")
	dir := filepath.Join("/sys/fs/cgroup", path, name)
	return errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(dir+"/cgroup.procs", []byte("0"), 0))
}

// peerUnits are the host's units for it.
func peerUnits() map[string]string {
	const (
		oneshot = "[Service]\nType=oneshot\nRemainAfterExit=yes\nStandardOutput=file:/run/said/%N\n"
		loads   = oneshot + "LoadCredential=key:" + peerSocket + "\nExecStart=/bin/sh -c 'cat $CREDENTIALS_DIRECTORY/key'\n"
		asks    = oneshot + "ExecStart=" + self + " part ask\nStandardInput=file:/run/ask/%N\n"
	)
	return map[string]string{
		"who.socket": "[Socket]\nListenStream=" + peerSocket + "\nSocketMode=0666\n",
		// As the broker: root without capabilities.
		"who.service": "[Service]\nExecStart=" + self + " part who\nCapabilityBoundingSet=\n",

		"vmcred@test-vm.service": loads,
		"user@.service": "[Service]\nType=notify\nUser=%i\nDelegate=yes\nSlice=user-%i.slice\nRuntimeDirectory=user/%i\n" +
			"Environment=XDG_RUNTIME_DIR=/run/user/%i HOME=/run/user/%i\nExecStart=/lib/systemd/systemd --user\n",
		"of-user.service":   loads + "User=" + other + "\n",
		"dynamic.service":   loads + "DynamicUser=yes\n",
		"_odd@x-y.service":  loads,
		"forging.service":   asks + "CapabilityBoundingSet=\nNoNewPrivileges=yes\n",
		"delegated.service": asks + "Delegate=yes\nUser=" + other + "\n",
	}
}

// who starts a unit and returns what the server said of the process that asked.
func (c *container) who(t *testing.T, unit string, q question) answered {
	t.Helper()
	text, err := json.Marshal(q)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.TrimSuffix(unit, ".service")
	c.write(t, "/run/ask/"+name, string(text))
	c.do(t, "systemctl start "+unit+" || { systemctl status --no-pager --full "+unit+"; exit 1; }")
	return parseAnswered(t, c.do(t, "cat /run/said/"+name))
}

func parseAnswered(t *testing.T, text string) answered {
	t.Helper()
	var a answered
	if err := json.Unmarshal([]byte(text), &a); err != nil {
		t.Fatalf("%v: %q", err, text)
	}
	if a.Error != "" {
		t.Fatal(a.Error)
	}
	return a
}

// TestPeer: what is known of who asks, when a real systemd or a forger does.
func TestPeer(t *testing.T) { tryPeer(t, "") }

// tryPeer is TestPeer with the systemd below a root directory; empty: this machine's.
func tryPeer(t *testing.T, system string) {
	t.Helper()
	needs(t)
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := bootSystem(t, system, t.TempDir(), "--bind-ro="+program+":"+self)
	uid := addUser(t, c)
	for name, text := range peerUnits() {
		c.write(t, "/etc/systemd/system/"+name, text)
	}
	c.do(t, "mkdir -p /run/said; systemctl daemon-reload; systemctl start who.socket")
	t.Run("units that ask truly", func(t *testing.T) { testTruePeers(t, c) })
	t.Run("forgers", func(t *testing.T) { testForgers(t, c, uid) })
	t.Run("a user's own units", func(t *testing.T) { testUserUnits(t, c, uid) })
}

// addUser makes an ordinary user.
func addUser(t *testing.T, c *container) int {
	t.Helper()
	c.do(t, "useradd --user-group --no-create-home --shell /usr/sbin/nologin "+other)
	uid, err := strconv.Atoi(strings.TrimSpace(c.do(t, "id -u "+other)))
	if err != nil {
		t.Fatal(err)
	}
	return uid
}

// Whatever user a unit has, systemd asks as root, in the unit's control group.
func testTruePeers(t *testing.T, c *container) {
	for unit, slice := range map[string]string{
		unitName: "system-vmcred.slice", "of-user.service": "system.slice", "dynamic.service": "system.slice",
		"_odd@x-y.service": `system-_odd.slice`,
	} {
		a := c.who(t, unit, question{})
		named, id, ok := peer.LoadName(a.Name)
		if a.UID != 0 || a.Unit != unit || a.Slice != slice || named != unit || id != "key" || !ok {
			t.Errorf("%s: %+v", unit, a)
		}
		if want := strings.TrimSpace(c.do(t, "systemctl show --value --property=InvocationID "+unit)); a.Invocation != want || want == "" {
			t.Errorf("%s: invocation %s, want %q", unit, a.Invocation, want)
		}
	}
}

// A name can be had by anybody, and so can a group's below one's own: the unit is true.
func testForgers(t *testing.T, c *container, uid int) {
	name := func(n int) string { return fmt.Sprintf("@%016x/unit/%s/key", n, unitName) }
	for i, f := range []struct {
		unit string
		uid  uint32
		q    question
	}{
		{"forging.service", 0, question{Name: name(0)}},
		{"delegated.service", uint32(uid), question{Name: name(1), Cgroup: unitName}},
	} {
		a := c.who(t, f.unit, f.q)
		if named, _, _ := peer.LoadName(a.Name); named != unitName {
			t.Errorf("%s has not got the name: this attempt shows nothing: %+v", f.unit, a)
		}
		if a.Unit != f.unit || a.UID != f.uid {
			t.Errorf("%d: %+v, want %s of user %d", i, a, f.unit, f.uid)
		}
	}
	// Somebody of no unit: what enters the container is outside of its control groups.
	for user, id := range map[string]uint32{"": 0, other: uint32(uid)} {
		var a answered
		play(t, c, user, "ask", question{Name: name(2 + int(id))}, &a)
		if a.Error != "" || a.Unit != "" || a.Invocation != "" || a.UID != id {
			t.Errorf("%q: %+v, want no unit", user, a)
		}
	}
}

// A user's systemd has units of any name, and asks with the same names as the host's.
func testUserUnits(t *testing.T, c *container, uid int) {
	manager := fmt.Sprintf("user@%d.service", uid)
	dir := fmt.Sprintf("/run/user/%d", uid)
	as := fmt.Sprintf("setpriv --reuid=%[1]s --regid=%[1]s --init-groups env XDG_RUNTIME_DIR=%[2]s systemctl --user ", other, dir)
	c.do(t, "systemctl start "+manager)
	c.write(t, dir+"/ask", "{}")
	for what, text := range map[string]string{
		"asks itself":    "ExecStart=" + self + " part ask\nStandardInput=file:" + dir + "/ask\n",
		"LoadCredential": "LoadCredential=key:" + peerSocket + "\nExecStart=/bin/sh -c 'cat $CREDENTIALS_DIRECTORY/key'\n",
	} {
		c.write(t, dir+"/systemd/user/"+unitName, "[Service]\nType=oneshot\nStandardOutput=file:"+dir+"/said\n"+text)
		c.do(t, "rm -f "+dir+"/said; "+as+"daemon-reload; "+as+"start "+unitName)
		a := parseAnswered(t, c.do(t, "cat "+dir+"/said"))
		if a.UID != uint32(uid) || a.Unit != manager || a.Slice != fmt.Sprintf("user-%d.slice", uid) {
			t.Errorf("%s: %+v, want %s", what, a, manager)
		}
		if named, _, ok := peer.LoadName(a.Name); ok != (a.Name != "") || ok != (what == "LoadCredential") || ok && named != unitName {
			t.Errorf("%s: is called %q", what, a.Name)
		}
	}
	c.do(t, "systemctl stop "+manager)
}
