// SPDX-License-Identifier: Apache-2.0

//go:build linux && amd64

package testhost

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// An agent is an attacker's code in a place that only systemd or a runner can put it: it
// connects to the test, which tells it what parts of this program to play.
const agentDir = "/run/agents"

// The places: beside a runner in its unit, in a VMM that is taken over, in a unit that may
// have what it asks for.
const (
	roleUnit  = "unit"
	roleVMM   = "vmm"
	roleRight = "right"
	roleRoot  = "root" // a unit of root's, without capabilities
)

func agentSocket(role string) string { return filepath.Join(agentDir, role) }

// order is what an agent is told, and reply what it answers.
type order struct {
	Part string
	In   json.RawMessage
}

type reply struct {
	Out   json.RawMessage
	Error string
}

// beAgent does what the test says until that closes.
func beAgent(role string) error {
	c, err := net.Dial("unix", agentSocket(role))
	if err != nil {
		return err
	}
	defer c.Close()
	from, to := json.NewDecoder(c), json.NewEncoder(c)
	for {
		var o order
		if err := from.Decode(&o); err != nil {
			return err
		}
		var r reply
		out, err := parts()[o.Part](o.In)
		if err == nil {
			r.Out, err = json.Marshal(out)
		}
		if err != nil {
			r.Error = err.Error()
		}
		if err := to.Encode(r); err != nil {
			return err
		}
	}
}

func agentIn(role string) func([]byte) (any, error) {
	return func([]byte) (any, error) { return nil, beAgent(role) }
}

// leaveAgent starts an agent that stays when this process ends. It has every descriptor
// that this process was given.
func leaveAgent(role string) error {
	cmd := exec.Command(self, "part", role)
	cmd.Env = []string{"PATH=/usr/bin"} // a VMM has none
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd.Start()
}

// descriptor is one that an agent has: what it is, and of a socket who made the other end.
type descriptor struct {
	Link string
	Peer int
}

// ownDescriptors are this process's, with what it was given by who started it.
func ownDescriptors([]byte) (any, error) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil, err
	}
	var all []descriptor
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			return nil, err
		}
		link, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil {
			continue // that of the directory itself
		}
		d := descriptor{Link: link}
		if cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			d.Peer = int(cred.Pid)
		}
		all = append(all, d)
	}
	return all, nil
}

// beItsRunner is a unit's main process that leaves an agent and then is evil-vm's runner.
func beItsRunner() error {
	// By a process of its own, so that it is no child of the runner's.
	if err := exec.Command(self, "part", "leave an agent").Run(); err != nil {
		return err
	}
	return syscall.Exec("/usr/local/bin/vmcred", []string{"vmcred", "run", evil}, os.Environ())
}

const realQEMU = "/usr/bin/qemu-system-x86_64"

// isTakenOver reports whether this program stands where QEMU is looked for.
func isTakenOver() bool { return filepath.Base(os.Args[0]) == filepath.Base(realQEMU) }

// beTakenOver is a QEMU that somebody has got into: an agent in its user, its domain and
// with its descriptors, and QEMU itself.
func beTakenOver() error {
	if _, err := os.Stat(agentSocket(roleVMM)); err == nil && len(os.Args) > 2 { // not just --version
		if err := leaveAgent(roleVMM); err != nil {
			return err
		}
	}
	return syscall.Exec(realQEMU, append([]string{realQEMU}, os.Args[1:]...), os.Environ())
}

// agent is this side of one.
type agent struct {
	role string
	l    *net.UnixListener
	c    net.Conn
}

// expect makes the place where an agent is waited for.
func (c *container) expect(t *testing.T, role string) *agent {
	t.Helper()
	c.do(t, "mkdir -p "+agentDir)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: c.path(agentSocket(role))})
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{role: role, l: l}
	t.Cleanup(func() {
		_ = l.Close()
		if a.c != nil {
			_ = a.c.Close()
		}
	})
	c.do(t, "chmod 0666 "+agentSocket(role))
	return a
}

// play has the agent play a part.
func (a *agent) play(t *testing.T, part string, in, out any) {
	t.Helper()
	text, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(patience)
	if a.c == nil {
		_ = a.l.SetDeadline(deadline)
		if a.c, err = a.l.Accept(); err != nil {
			t.Fatalf("%s: no agent came: %v", a.role, err)
		}

	}
	var r reply
	err = errors.Join(a.c.SetDeadline(deadline), json.NewEncoder(a.c).Encode(order{Part: part, In: text}))
	if err == nil {
		err = json.NewDecoder(a.c).Decode(&r)
	}
	if err == nil && r.Error != "" {
		err = errors.New(r.Error)
	}
	if err == nil {
		err = json.Unmarshal(r.Out, out)
	}
	if err != nil {
		t.Fatalf("%s: %s: %v", a.role, part, err)
	}
}
