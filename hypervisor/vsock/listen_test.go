// SPDX-License-Identifier: Apache-2.0

package vsock

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"golang.org/x/sys/unix"
)

func TestListenInALongPath(t *testing.T) {
	run := filepath.Join(runDir(t), strings.Repeat("long", 40))
	if err := os.Mkdir(run, 0o700); err != nil {
		t.Fatal(err)
	}
	id := vmUser(t)
	d := makeDir(t, run, id)
	l, err := Listen(d, strings.Repeat("n", maxName), ^uint32(0), id)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.Repeat("n", maxName) + "_4294967295"
	if err := connect(d, name); err != nil {
		t.Error(err)
	}
	if _, err := Listen(d, strings.Repeat("n", maxName), ^uint32(0), id); !errors.Is(err, unix.EADDRINUSE) || strings.Contains(err.Error(), "/proc/") {
		t.Errorf("twice: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(d.Path(name)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its socket is still there: %v", err)
	}
	if err := l.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed again: %v", err)
	}
}

func TestListenRefuses(t *testing.T) {
	d := makeDir(t, runDir(t), nil)
	for _, name := range []string{"", ".", "..", "a/b", "/a", "a\x00", strings.Repeat("n", maxName+1)} {
		if l, err := Listen(d, name, 1, nil); err == nil {
			_ = l.Close()
			t.Errorf("took the name %q", name)
		}
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(d, "s", 1, nil); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// What stands where the socket should be is not bound to, and what takes its place
// after that is not given away.
func TestListenGivesNothingElseAway(t *testing.T) {
	needRoot(t)
	d := makeDir(t, runDir(t), nil)
	l, err := Listen(d, "real", 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for name, put := range map[string]func(path string) error{
		"link": func(p string) error { return os.Symlink(d.Path("real_1"), p) },
		"file": func(p string) error { return os.WriteFile(p, nil, 0o600) },
	} {
		if err := put(d.Path(name + "_1")); err != nil {
			t.Fatal(err)
		}
		if _, err := Listen(d, name, 1, vmUser(t)); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("%s: %v", name, err)
		}
		if err := d.giveSocket(name+"_1", vmUser(t)); err == nil {
			t.Errorf("gave a %s away", name)
		}
	}
}

// A listener that outlives its directory must not remove the next one's socket,
// whose directory may have the same descriptor.
func TestAListenerThatIsLate(t *testing.T) {
	run := runDir(t)
	old, err := MakeDir(run, nil)
	if err != nil {
		t.Fatal(err)
	}
	late, err := Listen(old, "s", 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	d := makeDir(t, run, nil)
	l, err := Listen(d, "s", 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := late.Close(); err != nil {
		t.Error(err)
	}
	if err := connect(d, "s_1"); err != nil {
		t.Errorf("the new socket is gone: %v", err)
	}
}

// one hands out one connection and is closed then.
type one struct {
	net.Listener
	conn net.Conn
}

func (o *one) Accept() (net.Conn, error) {
	if c := o.conn; c != nil {
		o.conn = nil
		return c, nil
	}
	return nil, net.ErrClosed
}

func TestServeWaitsForItsHandlers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, host := net.Pipe()
		finish, served := make(chan struct{}), make(chan struct{})
		go func() { Serve(&one{conn: host}, func(net.Conn) { <-finish }); close(served) }()
		synctest.Wait()
		select {
		case <-served:
			t.Error("it did not wait")
		default:
		}
		close(finish)
		<-served
	})
}

func TestServe(t *testing.T) {
	d := makeDir(t, runDir(t), nil)
	l, err := Listen(d, "s", 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	now, most := 0, 0
	all := make(chan struct{})    // closed when as many as may be are there
	finish := make(chan struct{}) // closed to let them go
	served := make(chan struct{})
	go func() {
		defer close(served)
		Serve(l, func(net.Conn) {
			mu.Lock()
			now++
			if most = max(most, now); now == maxHandlers {
				close(all)
			}
			mu.Unlock()
			<-finish
			mu.Lock()
			now--
			mu.Unlock()
		})
	}()
	dial := func() net.Conn {
		c, err := net.Dial("unix", procPath(d.file)+"/s_1")
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	var conns []net.Conn
	for range maxHandlers {
		conns = append(conns, dial())
	}
	<-all
	tooMany := dial()
	if _, err := tooMany.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("one too many: %v", err)
	}
	_ = tooMany.Close()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	close(finish)
	<-served
	for _, c := range conns {
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("a handled connection was not closed: %v", err)
		}
		_ = c.Close()
	}
	if now != 0 || most != maxHandlers {
		t.Errorf("%d left, %d at most", now, most)
	}
}

// flaky fails a few times, as with no descriptors left, before it is closed.
type flaky struct {
	net.Listener
	fails int
}

func (f *flaky) Accept() (net.Conn, error) {
	if f.fails--; f.fails >= 0 {
		return nil, unix.EMFILE
	}
	return nil, net.ErrClosed
}

func TestServeOutlivesAFailedAccept(t *testing.T) {
	f := &flaky{fails: 2}
	Serve(f, func(net.Conn) { t.Error("there is no connection") })
	if f.fails != -1 {
		t.Errorf("it gave up %d tries early", f.fails+1)
	}
}
