// SPDX-License-Identifier: Apache-2.0

package testrun

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/hypervisor/hostcheck"
)

// addDevices gives a mortal VM of cloud-hypervisor what its death could leave
// behind: a disk, a vsock socket, a tap, and a virtiofsd where there is one.
func (m *mortal) addDevices(t *testing.T) {
	t.Helper()
	if m.files {
		return
	}
	m.sparse(t, "disk", 1<<20)
	m.more = fmt.Sprintf("notify: boot\ndisks: [{path: %s}]\nvsock: {cid: 3}\n", filepath.Join(m.dir, "disk"))
	if m.uid != 0 {
		t.Log("SKIPPED, nothing was shown of taps and shares: needs root")
		return
	}
	if name := fmt.Sprintf("vmcredt%d", os.Getpid()%1e6); makeTap(t, name) {
		m.tap = name
		m.more += fmt.Sprintf("interfaces: [{type: tap, id: %s, mac: \"02:00:00:01:01:01\"}]\n", name)
	}
	if m.real { // a stand-in does not speak to a virtiofsd
		m.addShare(t)
	}
}

// addShare gives it one as whoever the virtiofsd of this machine can serve.
func (m *mortal) addShare(t *testing.T) {
	t.Helper()
	dir := filepath.Join(m.dir, "share")
	if err := errors.Join(os.Mkdir(dir, 0o755), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	before, why := m.more, ""
	for _, user := range []string{"nobody", "root"} {
		m.more = before + fmt.Sprintf("shares: [{tag: share, source: %s, proto: virtiofs, readonly: true, user: %s}]\n", dir, user)
		m.spec(t, "wait", func(string) string { return "" })
		r := start(t, m.command(t, nil, append([]string{"plan", m.file()}, m.args...)...))
		if code := r.end(t); code == 0 {
			m.share = true
			return
		}
		why = r.err.String()
	}
	m.more = before
	t.Logf("SKIPPED, nothing was shown of shares: %s", why)
}

// wantServer: a virtiofsd that is left over would be found.
func (m *mortal) wantServer(t *testing.T) {
	t.Helper()
	for _, pid := range of(m.name) {
		if name, _ := os.ReadFile(proc(pid, "comm")); !m.share || strings.HasPrefix(string(name), "virtiofsd") {
			return
		}
	}
	t.Error("the VM has a share, and there is no virtiofsd")
}

// makeTap makes a tap that is there until the test ends.
func makeTap(t *testing.T, name string) bool {
	t.Helper()
	persist := func(on int) error {
		fd, err := attachTap(name)
		if err != nil {
			return err
		}
		return errors.Join(unix.IoctlSetInt(fd, unix.TUNSETPERSIST, on), unix.Close(fd))
	}
	if err := persist(1); err != nil {
		t.Logf("SKIPPED, nothing was shown of taps: %v", err)
		return false
	}
	t.Cleanup(func() {
		if err := persist(0); err != nil {
			t.Errorf("the tap cannot be removed: %v", err)
		}
	})
	return true
}

// attachTap attaches to a tap, which one process at a time can.
func attachTap(name string) (int, error) {
	fd, err := unix.Open(hostcheck.Tun, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: hostcheck.Tun, Err: err}
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// detached waits until nobody has the tap any more: a process that dies has no
// command line, and is not found by it, some time before its files are closed.
func (m *mortal) detached(t *testing.T) {
	t.Helper()
	if m.tap == "" {
		return
	}
	again := time.NewTicker(time.Millisecond) // nothing tells of it
	defer again.Stop()
	late := time.After(patience)
	for {
		fd, err := attachTap(m.tap)
		if err == nil {
			err = unix.Close(fd)
		}
		if !errors.Is(err, unix.EBUSY) {
			if err != nil {
				t.Error(err)
			}
			return
		}
		select {
		case <-again.C:
		case <-late:
			t.Errorf("the tap is not free: %v", err)
			return
		}
	}
}

// saysDead: from the moment in which one of the two is dead nobody is told that the
// VM runs.
func (m *mortal) saysDead(t *testing.T) {
	t.Helper()
	r := start(t, m.command(t, nil, "status", "--json", m.file()))
	if code := r.end(t); code != 3 || strings.Contains(r.out.String(), `"running"`) {
		t.Errorf("status exits %d: %s%s", code, r.out.String(), r.err.String())
	}
}
