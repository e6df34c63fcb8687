// SPDX-License-Identifier: Apache-2.0

package vhostvsock

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/internal/launch"
)

// patience ends a test that would hang. No outcome depends on it.
const patience = time.Minute

func started(t *testing.T, o StartOptions) *Server {
	t.Helper()
	s, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Finish)
	return s
}

func dialled(t *testing.T, s *Server) *os.File {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := s.Dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// A socket that is bound and refuses is not there yet.
func TestDialWaitsForALateDaemon(t *testing.T) {
	o := options(t, self(t), playLate, &buffer{})
	start := filepath.Join(o.Dir.Name(), "go")
	if err := unix.Mkfifo(start, 0o600); err != nil {
		t.Fatal(err)
	}
	s := started(t, o)
	// Opened for writing once the daemon reads, and so has bound its socket.
	f, err := os.OpenFile(start, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := s.Dial(short); !errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "/proc/") {
		t.Errorf("nobody listens: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	dialled(t, s)
}

func TestDialGivesUp(t *testing.T) {
	s := started(t, options(t, self(t), playNothing, &buffer{}))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Dial(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	go func() { s.Kill() }()
	if _, err := s.Dial(t.Context()); err == nil || !strings.Contains(err.Error(), "vhost-device-vsock ended (SIGKILL): and said nothing") {
		t.Error(err)
	}
}

func TestADaemonThatDies(t *testing.T) {
	log := &buffer{}
	s := started(t, options(t, self(t), playDies, log))
	_, err := s.Dial(t.Context())
	if err == nil || err.Error() != `vhost-device-vsock ended (exit status 1): no ?[31msuch thing?` {
		t.Errorf("%v", err)
	}
	if log.String() != `vsock: no ?[31msuch thing?`+"\n" {
		t.Errorf("the log has %q", log.String())
	}
}

// A link would lead root to any socket of the host.
func TestDialFollowsNoLink(t *testing.T) {
	o := options(t, self(t), playLink, &buffer{})
	l, err := net.Listen("unix", filepath.Join(o.Dir.Name(), "elsewhere"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := started(t, o).Dial(ctx); err == nil || !strings.Contains(err.Error(), "something else") {
		t.Errorf("%v", err)
	}
}

func TestDialTrustsNobodyElsesSocket(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root, to make a socket of another user's")
	}
	o := options(t, self(t), playNothing, &buffer{})
	path := filepath.Join(o.Dir.Name(), control)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Chown(path, 65532, 65532); err != nil {
		t.Fatal(err)
	}
	if _, err := started(t, o).Dial(t.Context()); err == nil || !strings.Contains(err.Error(), "something else") {
		t.Errorf("%v", err)
	}
}

func TestLost(t *testing.T) {
	for name, tc := range map[string]struct {
		first func(s *Server, vmm chan struct{})
		want  bool
	}{
		"the daemon is killed": {func(s *Server, _ chan struct{}) { s.Kill() }, true},
		"the VMM ends first":   {func(s *Server, vmm chan struct{}) { close(vmm) }, false},
		"we end it":            {func(s *Server, _ chan struct{}) { s.Finish() }, false},
		"all end at once":      {func(s *Server, vmm chan struct{}) { s.Kill(); close(vmm) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := started(t, options(t, self(t), playNothing, &buffer{}))
			vmm, lost := make(chan struct{}), make(chan error, 1)
			watched := make(chan struct{})
			go func() { // as Watch does, with an end that can be waited for
				defer close(watched)
				s.watch(vmm, func(err error) { lost <- err })
			}()
			tc.first(s, vmm)
			<-watched
			select {
			case err := <-lost:
				if !tc.want || !strings.Contains(err.Error(), "SIGKILL") {
					t.Errorf("lost: %v", err)
				}
			default:
				if tc.want {
					t.Error("nobody was told")
				}
			}
		})
	}
	var none *Server
	none.Watch(nil, nil)
	none.Finish()
}

func TestStartFails(t *testing.T) {
	o := options(t, "/nonexistent/daemon", 3, nil)
	if _, err := Start(o); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// real is this host's daemon where every user can execute it, or the test is skipped.
func real(t *testing.T) Daemon {
	t.Helper()
	d, err := Probe(t.Context(), Options{})
	if err != nil {
		t.Skipf("SKIPPED: needs %s on PATH (%s): %v", Executable, Install, err)
	}
	return d
}

// As another user, with nothing but the directory, and nobody else gets in.
func TestRealDaemon(t *testing.T) {
	d := real(t)
	log := &buffer{}
	o := options(t, d.Path, 42, log)
	o.Daemon = d
	if os.Geteuid() == 0 {
		o.Identity = &launch.Identity{UID: 65531, GID: 65531}
	}
	o.Dir = sockets(t, o.Identity)
	s := started(t, o)
	conn := dialled(t, s)
	if name := peerOf(t, conn); name != s.PID() {
		t.Errorf("connected to process %d, and the daemon is %d", name, s.PID())
	}
	info, err := os.Lstat(filepath.Join(o.Dir.Name(), "vsock"))
	if err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*syscall.Stat_t); info.Mode().Type() != os.ModeSocket || o.Identity != nil && st.Uid != o.Identity.UID {
		t.Errorf("the guest's end is %v of uid %d", info.Mode(), st.Uid)
	}
	if env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", s.PID())); err != nil || len(env) > 0 {
		t.Errorf("its environment is %q, %v", env, err)
	}
	_ = conn.Close()
	s.Finish()
	if s.Running() {
		t.Error("it stays")
	}
	if log.String() != "" {
		t.Errorf("it says %q", log.String())
	}
}

// The directory it is to listen in is closed to it: it says so.
func TestRealDaemonThatCannotListen(t *testing.T) {
	d := real(t)
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root, to have a directory of another user's")
	}
	o := options(t, d.Path, 42, &buffer{})
	o.Identity = &launch.Identity{UID: 65531, GID: 65531}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err := started(t, o).Dial(ctx)
	if err == nil || !strings.Contains(err.Error(), "vhost-device-vsock ended") || !strings.Contains(err.Error(), "bind") {
		t.Errorf("%v", err)
	}
}

func peerOf(t *testing.T, conn *os.File) int {
	t.Helper()
	cred, err := unix.GetsockoptUcred(int(conn.Fd()), unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		t.Fatal(err)
	}
	return int(cred.Pid)
}

func TestProbe(t *testing.T) {
	fake := func(version string) string {
		path := filepath.Join(t.TempDir(), Executable)
		if err := os.WriteFile(path, fmt.Appendf(nil, "#!/bin/sh\necho '%s'\n", version), 0o755); err != nil {
			t.Fatal(err)
		}
		for dir := filepath.Dir(path); strings.HasPrefix(dir, os.TempDir()+"/"); dir = filepath.Dir(dir) {
			if err := os.Chmod(dir, 0o755); err != nil { // it is asked as nobody
				t.Fatal(err)
			}
		}
		return path
	}
	path := fake("vhost-device-vsock 0.3.0")
	t.Setenv("PATH", filepath.Dir(path))
	if d, err := Probe(t.Context(), Options{}); err != nil || d.Path != path || d.String() != "vhost-device-vsock 0.3.0" {
		t.Errorf("%v, %v", d, err)
	}
	for version, want := range map[string]string{
		"vhost-device-vsock 0.2.9": "at least 0.3.0 is needed", "bash 5.2": "does not look like",
	} {
		if _, err := Probe(t.Context(), Options{Path: fake(version)}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", version, err)
		}
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := Probe(t.Context(), Options{}); hintOf(err) != Install {
		t.Errorf("%v (hint %q)", err, hintOf(err))
	}
}
