// SPDX-License-Identifier: Apache-2.0

//go:build linux && amd64

package testhost

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/broker/transfer"
	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/internal/peer"
	"github.com/vmcred/vmcred/secret"
)

// saysAbout: the unit is not started, and its status has all these words.
func (c *container) saysAbout(t *testing.T, unit string, wants ...string) {
	t.Helper()
	status := c.refused(t, unit)
	for _, want := range wants {
		if !strings.Contains(status, want) {
			t.Errorf("the status of %s does not say %q:\n%s", unit, want, status)
		}
	}
}

const sockets = "vmcred-broker.socket vmcred-runner.socket"

// testBrokerDown: nobody listens. Our own unit would start the sockets, so they are masked.
func testBrokerDown(t *testing.T, c *container) {
	c.write(t, foreignVM, foreignFile(foreignUnit, "  host-api-key: {var: gen/api-key}\n"))
	c.writeChecker(t, foreignUnit, "1min", "host-api-key")
	c.do(t, "systemctl mask --runtime --now "+sockets+" "+brokerUnit)
	c.saysAbout(t, foreignUnit, "status=243/CREDENTIALS")
	c.saysAbout(t, refusedUnit, "status=1/", "there is no broker", "systemctl enable --now "+sockets)
	c.do(t, "systemctl unmask --runtime "+sockets+" "+brokerUnit+"; systemctl start "+sockets)
}

// testBrokerHangs: it is stopped in the middle of whatever it does.
func testBrokerHangs(t *testing.T, c *container) {
	c.writeChecker(t, foreignUnit, "2s", "host-api-key")
	c.do(t, "systemctl start "+brokerUnit+"; systemctl kill --signal=STOP "+brokerUnit)
	c.saysAbout(t, foreignUnit, "timeout")
	c.saysAbout(t, refusedUnit, "status=1/", "the broker did not answer within 20s", "systemctl status vmcred-broker.service vmcred-runner.socket")
	c.do(t, "systemctl kill --signal=KILL "+brokerUnit+"; systemctl reset-failed "+brokerUnit)
	// The next one answers.
	c.do(t, "systemctl start "+foreignUnit)
	if got := c.checked(t, foreignUnit); got["host-api-key"] != sumOf("the api key") {
		t.Errorf("it was given %v", got)
	}
}

// testSquatted: somebody else listens where the broker should be. No other user could make
// the socket there, which is tried as well.
func testSquatted(t *testing.T, c *container) {
	script := "import socket,os,sys\\nos.setuid(65534)\\ns=socket.socket(socket.AF_UNIX)\\ns.bind(\\'/run/vmcred/x.sock\\')"
	if out, err := c.try("python3 -c $'" + script + "'"); err == nil || !strings.Contains(out, "Permission denied") {
		t.Errorf("another user can listen in /run/vmcred: %v %s", err, out)
	}
	c.do(t, "systemctl stop "+sockets+" "+brokerUnit)
	// A directory of another user's, with a socket in it, where ours is looked for.
	l, path := c.listenAs(t, "/run/vmcred/runner.sock", 65534)
	defer l.Close()
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	c.do(t, "systemctl mask --runtime "+sockets)
	c.saysAbout(t, refusedUnit, "status=1/", "somebody else is where the broker should be", "user 65534 listens at /run/vmcred/runner.sock, and not user 0: nothing was asked")
	_ = l.Close()
	c.do(t, "rm -f /run/vmcred/runner.sock; systemctl unmask --runtime "+sockets+"; systemctl start "+sockets)
}

// listenAs listens in the container as a user: who listens is who called listen(2).
func (c *container) listenAs(t *testing.T, inside string, uid int) (*net.UnixListener, string) {
	t.Helper()
	path := c.path(inside)
	type result struct {
		l   *net.UnixListener
		err error
	}
	got := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
		}
		if err == nil {
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
				err = errno
			}
		}
		if err == nil {
			err = unix.Listen(fd, 5)
		}
		if err != nil {
			got <- result{nil, err}
			return
		}
		f := os.NewFile(uintptr(fd), path)
		l, err := net.FileListener(f)
		_ = f.Close()
		if err != nil {
			got <- result{nil, err}
			return
		}
		got <- result{l.(*net.UnixListener), nil}
	}()
	r := <-got
	if r.err != nil {
		t.Fatal(r.err)
	}
	return r.l, path
}

// cutJob is what the cutter answers with: a list that is whole, and values of which those
// that are named end early.
type cutJob struct {
	Values map[string]string
	Cut    map[string]int // bytes that are left
	NoList bool           // it dies before the list
}

// cutAll answers LoadCredential= as a broker does that is killed in the middle, as often as
// there are values and a list. It is a part of this program.
func cutAll(in []byte) (any, error) {
	var job cutJob
	if err := json.Unmarshal(in, &job); err != nil {
		return nil, err
	}
	a := secret.NewArena()
	values := map[string]*secret.Value{}
	for name, text := range job.Values {
		v, err := a.Read(strings.NewReader(text), 1<<20)
		if err != nil {
			return nil, err
		}
		values[name] = v
	}
	list, err := transfer.Encode(a, "", values)
	if err != nil {
		return nil, err
	}
	const path = "/run/vmcred/broker.sock"
	_ = os.Remove(path)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		return nil, err
	}
	for range len(job.Values) + 1 {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		_, id, _ := peer.LoadName(c.RemoteAddr().(*net.UnixAddr).Name)
		v := values[id]
		if id == credential.TransferList && !job.NoList {
			v = list
		}
		if v != nil {
			_ = v.Use(func(b []byte) error {
				if n, ok := job.Cut[id]; ok {
					b = b[:n]
				}
				_, err := c.Write(b)
				return err
			})
		}
		_ = c.Close()
	}
	return nil, nil
}

// testCut: systemd starts a unit with a value that is cut, or empty. What is started
// compares it with the list, and starts no VM.
func testCut(t *testing.T, c *container) {
	const (
		unit = "cut.service"
		file = "/etc/vmcred/vms/cut.yaml"
	)
	c.do(t, "systemctl stop "+sockets+" "+brokerUnit+"; systemctl mask --runtime "+sockets)
	c.write(t, file, foreignFile(unit, "  host-a: {var: gen/a}\n  host-b: {var: gen/b}\n"))
	run := "[Service]\nType=oneshot\nUser=nobody\nEnvironment=XDG_CONFIG_HOME=/etc XDG_RUNTIME_DIR=/tmp HOME=/tmp\n%sExecStart=/usr/local/bin/vmcred run --expect-transfer-list cut\n"
	all := "LoadCredential=host-a:/run/vmcred/broker.sock\nLoadCredential=host-b:/run/vmcred/broker.sock\nLoadCredential=vmcred.transfer-list:/run/vmcred/broker.sock\n"
	big := map[string]string{"host-a": strings.Repeat("a", 600_000), "host-b": "b"}
	for name, step := range map[string]struct {
		job    cutJob
		status string
		want   string
	}{
		"a part":       {cutJob{Values: big, Cut: map[string]int{"host-a": 100_000}}, "status=1/", "host-a: 100000 bytes arrived, and the broker sent 600000"},
		"nothing":      {cutJob{Values: big, Cut: map[string]int{"host-b": 0}}, "status=1/", "host-b: 0 bytes arrived, and the broker sent 1"},
		"no list":      {cutJob{Values: big, NoList: true}, "status=1/", "the transfer list is empty"},
		"half of list": {cutJob{Values: big, Cut: map[string]int{credential.TransferList: 100}}, "status=1/", "the transfer list is cut"},
	} {
		c.write(t, "/etc/systemd/system/"+unit, fmt.Sprintf(run, all))
		job, err := json.Marshal(step.job)
		if err != nil {
			t.Fatal(err)
		}
		c.write(t, "/run/cut.json", string(job))
		c.do(t, `systemctl daemon-reload; rm -f /run/vmcred/broker.sock
			systemd-run --quiet --unit=cutter --property=StandardInput=file:/run/cut.json `+self+` part cut
			until [ -S /run/vmcred/broker.sock ]; do :; done
			systemctl start `+unit+` || :; systemctl stop cutter.service 2>/dev/null || :`)
		status := c.do(t, "journalctl --sync; systemctl status --no-pager --full --lines=50 "+unit+" || :")
		if !strings.Contains(status, step.want) || !strings.Contains(status, step.status) {
			t.Errorf("%s: the status does not say %q and %q:\n%s", name, step.want, step.status, status)
		}
	}
	// A list that nobody asked for.
	c.write(t, "/etc/systemd/system/"+unit, fmt.Sprintf(run, ""))
	c.write(t, "/etc/systemd/system/"+unit+".d/50-test.conf", "[Service]\nLoadCredential=\nSetCredential=host-a:x\nSetCredential=host-b:x\n")
	c.do(t, "systemctl daemon-reload; systemctl start "+unit+" || :")
	status := c.do(t, "journalctl --sync; systemctl status --no-pager --full --lines=50 "+unit+" || :")
	for _, want := range []string{"the transfer list is expected, and not in credentials directory", "status=78/CONFIG"} {
		if !strings.Contains(status, want) {
			t.Errorf("the status does not say %q:\n%s", want, status)
		}
	}
	c.do(t, "rm -f /run/vmcred/broker.sock; systemctl unmask --runtime "+sockets+"; systemctl start "+sockets)
}

// testOneVersion: the values are replaced all the time, and systemd asks for each of them
// several times. A start has those of one moment, or is none.
func testOneVersion(t *testing.T, c *container) {
	const n = 40
	c.write(t, foreignVM, foreignFile(foreignUnit, "  host-a: {var: turn/a}\n  host-b: {var: turn/b}\n"))
	c.writeChecker(t, foreignUnit, "1min", "host-a", "host-b", "vmcred.transfer-list")
	c.write(t, "/etc/systemd/system/"+foreignUnit+".d/pre.conf", "[Service]\nExecStartPre=true\nExecStartPre=sh -c 'cd $CREDENTIALS_DIRECTORY && cat host-a'\nExecStartPre=sh -c 'cd $CREDENTIALS_DIRECTORY && cat host-b'\n")
	c.do(t, "systemctl daemon-reload; install -d -m 700 "+varsDir+"/.versions")
	c.write(t, "/run/turn.sh", `cd `+varsDir+`
umask 077
n=0
while :; do
	n=$((n + 1)); d=.versions/turn.$n
	mkdir $d; echo $n > $d/a; echo $n > $d/b; chmod 400 $d/a $d/b
	ln -s $d .versions/.new; mv -T .versions/.new turn
	rm -rf .versions/turn.$((n - 50))
done
`)
	c.do(t, "systemd-run --quiet --unit=turn sh /run/turn.sh; until [ -e "+varsDir+"/turn/a ]; do :; done")
	whole, versions := 0, map[string]bool{}
	for range n {
		c.do(t, "rm -f "+checkedDir+"/"+foreignUnit+"; systemctl start "+foreignUnit+" || systemctl reset-failed "+foreignUnit)
		got := c.checked(t, foreignUnit)
		if got == nil {
			continue
		}
		whole++
		versions[got["host-a"]] = true
		if got["host-a"] != got["host-b"] {
			t.Errorf("values of two versions: %v", got)
		}
	}
	c.do(t, "systemctl stop turn.service; rm -r /etc/systemd/system/"+foreignUnit+".d; systemctl daemon-reload")
	if whole == 0 || len(versions) < 2 && whole > 1 {
		t.Errorf("%d of %d starts were whole, with %d versions", whole, n, len(versions))
	}
	t.Logf("%d of %d starts were whole, the others were refused; %d versions", whole, n, len(versions))
}

// testTampered: whatever is done to a real broker's log is found, and the record named.
func testTampered(t *testing.T, c *container) {
	c.do(t, "systemctl stop "+brokerUnit+"; cp -a "+auditDir+" /root/whole; cp -a /root/whole /root/older")
	c.write(t, foreignVM, foreignFile(foreignUnit, "  host-api-key: {var: gen/api-key}\n"))
	c.writeChecker(t, foreignUnit, "1min", "host-api-key")
	c.do(t, "systemctl start "+foreignUnit+"; systemctl stop "+brokerUnit+"; rm -r /root/whole; cp -a "+auditDir+" /root/whole; vmcred audit verify")
	last := strings.Fields(c.do(t, "journalctl --sync; journalctl -o cat --output-fields=VMCRED_AUDIT_HEAD VMCRED_AUDIT_LOG="+auditLog))
	head := last[len(last)-1]
	for name, step := range map[string]struct{ do, flags, want string }{
		"edited":    {`sed -i '3s/"pid":/"pid":9/' audit.log`, "", "audit.log:3: "},
		"deleted":   {"sed -i 3d audit.log", "", "audit.log:3: "},
		"swapped":   {"sed -i -e '3{h;d}' -e '4{G}' audit.log", "", "audit.log:3: "},
		"truncated": {"sed -i '$d' audit.log", "", "record"},
		"older":     {"cp -a /root/older/audit.log .", "", "record"},
		"older key": {"cp -a /root/older/audit.log /root/older/audit.log.key .", "--head " + head, "record " + strings.Split(head, ":")[0]},
		"gone":      {"rm audit.log", "", "audit.log"},
	} {
		c.do(t, "cd "+auditDir+"; "+step.do)
		out, err := c.try("vmcred audit verify " + step.flags)
		if err == nil || !strings.Contains(out, step.want) {
			t.Errorf("%s: it is found whole, or %q is not named:\n%s", name, step.want, out)
		}
		// Nor is anything handed out on top of it.
		if name != "edited" && name != "deleted" && name != "swapped" && name != "older key" {
			if status := c.refused(t, foreignUnit); !strings.Contains(status, "it cannot be put on record") {
				t.Errorf("%s: the status does not say it:\n%s", name, status)
			}
		}
		c.do(t, "systemctl stop "+brokerUnit+"; rm -r "+auditDir+"; cp -a /root/whole "+auditDir)
	}
	c.do(t, "vmcred audit verify")
}
