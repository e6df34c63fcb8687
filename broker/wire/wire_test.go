// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/secret"
)

// pair is a connection's two ends.
func pair(t testing.TB) (*net.UnixConn, *net.UnixConn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close(); _ = b.Close() })
	return a, b
}

func arena(t testing.TB) *secret.Arena {
	t.Helper()
	a := secret.NewArena()
	t.Cleanup(func() { _ = a.Close() })
	return a
}

// random is a set of values and what is said of them.
func random(t testing.TB, a *secret.Arena, r *rand.Rand) ([]Credential, []*secret.Value) {
	t.Helper()
	var said []Credential
	var values []*secret.Value
	room := MaxValues
	for i := range r.IntN(20) {
		n := min(r.IntN(1<<r.IntN(19)+1), room)
		room -= n
		v, err := a.Make(n, func(b []byte) (int, error) {
			for i := range b {
				b[i] = byte(r.Uint32())
			}
			return len(b), nil
		})
		if err != nil {
			t.Fatal(err)
		}
		said = append(said, Credential{Host: fmt.Sprintf("c-%d", i), Guest: "C", Bytes: n})
		values = append(values, v)
	}
	return said, values
}

func TestRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 100 {
		from, to := secret.NewArena(), secret.NewArena()
		said, values := random(t, from, r)
		x, y := pair(t)
		m, err := Values(values)
		if err != nil {
			t.Fatal(err)
		}
		if err := Identify(y); err != nil {
			t.Fatal(err)
		}
		sent := make(chan error, 1)
		want := &Request{Protocol: Protocol, Op: Record, VM: "x", Credentials: said}
		go func() { sent <- Send(x, want, m) }()
		got, read, sender, err := ReceiveRequest(y, to, MaxFrame)
		if err := errors.Join(err, <-sent); err != nil {
			t.Fatal(err)
		}
		if sender != (Sender{PID: os.Getpid(), UID: uint32(os.Geteuid())}) {
			t.Errorf("sent by %+v", sender)
		}
		if !reflect.DeepEqual(got, want) || len(read) != len(values) {
			t.Errorf("%+v, want %+v", got, want)
		}
		for i := range read {
			if !read[i].Equal(values[i]) {
				t.Errorf("value %d of %d bytes is another one", i, values[i].Len())
			}
		}
		if m != nil {
			_ = m.Release()
		}
		_ = x.Close()
		if err := AwaitClose(y); err != nil {
			t.Error(err)
		}
		_ = errors.Join(from.Close(), to.Close())
	}
}

func TestAnswerAndHello(t *testing.T) {
	x, y := pair(t)
	a := arena(t)
	if err := Send(x, Hello{Protocol}, nil); err != nil {
		t.Fatal(err)
	}
	if err := ReceiveHello(y); err != nil {
		t.Error(err)
	}
	_ = Send(x, Hello{Protocol + 1}, nil)
	var version *VersionError
	if err := ReceiveHello(y); !errors.As(err, &version) || version.Other != Protocol+1 {
		t.Errorf("%v", err)
	}
	want := &Answer{Problems: []Problem{{Credential: "c", Message: "no", Hint: "do", Retry: true}}}
	_ = Send(x, want, nil)
	if got, values, err := ReceiveAnswer(y, a); err != nil || values != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v %v %v", got, values, err)
	}
	_ = Send(x, want, nil)
	if err := AwaitClose(y); err == nil {
		t.Error("more was said, and it counts as closed")
	}
}

// raw sends bytes as they are, with descriptors.
func raw(t *testing.T, c *net.UnixConn, b []byte, fds ...int) {
	t.Helper()
	if _, _, err := c.WriteMsgUnix(b, unix.UnixRights(fds...), nil); err != nil {
		t.Fatal(err)
	}
}

// A frame takes not much more in memory than on the way, whatever is in it.
func TestNothingBecomesMuchLonger(t *testing.T) {
	for _, body := range []string{
		`{"protocol":1,"credentials":[{}` + strings.Repeat(",{}", 340_000) + `]}`,
		`{"protocol":1,"credentials":[null` + strings.Repeat(",null", 200_000) + `]}`,
		`{"protocol":1,"refusals":[{}` + strings.Repeat(",{}", 340_000) + `]}`,
		`{"protocol":1,"refusals":` + strings.Repeat("[", 1_000_000) + `]}`,
		`{"protocol":1,"vm":"` + strings.Repeat(`\u0001`, 170_000) + `"}`,
	} {
		x, y := pair(t)
		go func() { _, _ = x.Write(framed(body)) }()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, _, _, err := ReceiveRequest(y, nil, MaxFrame)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 8*MaxFrame {
			t.Errorf("%s… takes %d bytes (%v)", body[:40], n, err)
		}
	}
}

// Who may send little sends little, and no values.
func TestASmallRequest(t *testing.T) {
	ask := func(body string, fds ...int) error {
		x, y := pair(t)
		raw(t, x, framed(body), fds...)
		_, _, _, err := ReceiveRequest(y, nil, MaxSmall)
		return err
	}
	if err := ask(`{"protocol":1,"op":"health"}`); err != nil {
		t.Error(err)
	}
	if err := ask(`{"protocol":1,"op":"` + strings.Repeat("x", MaxSmall) + `"}`); err == nil || !strings.Contains(err.Error(), "longer than 4096") {
		t.Errorf("%v", err)
	}
	fd, err := unix.MemfdCreate("x", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := ask(`{"protocol":1,"op":"record","credentials":[{"host":"a"}]}`, fd); err == nil || !strings.Contains(err.Error(), "where none belongs") {
		t.Errorf("%v", err)
	}
}

func framed(body string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
}

func TestWhatIsRefused(t *testing.T) {
	for text, want := range map[string]string{
		``: "closed without a word", "\x00": "closed in the middle", "\x00\x00\x00\x05{": "closed in the middle",
		"\xff\xff\xff\xff": "longer than", "\x00\x10\x00\x01": "longer than",
		string(framed(`{"protocol":1,"op":"take","vm":"x","path":"/x"}`)): "unknown field",
		string(framed(`{"protocol":1}{}`)):                                "more than one message",
		string(framed(`[]`)):                                              "no message of vmcred",
		string(framed(`{"protocol":2}`)):                                  "version 2",
		string(framed(``)):                                                "no message of vmcred",
		string(framed(`{"protocol":1,"op":"record","credentials":[{"host":"a","bytes":1}]}`)): "did not come along",
	} {
		x, y := pair(t)
		if _, err := x.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		_ = x.CloseWrite()
		if r, _, _, err := ReceiveRequest(y, arena(t), MaxFrame); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %+v %v, want %q", text, r, err, want)
		}
	}
	if err := Send(nil, strings.Repeat("x", MaxFrame), nil); err == nil {
		t.Error("a frame that is too long is sent")
	}
}

// A peer may send any descriptor: what is no memory file of the right size is closed and
// refused, and nothing waits for it.
func TestWhatIsNoMemoryFile(t *testing.T) {
	open := func(path string, flags int) func(t *testing.T) []int {
		return func(t *testing.T) []int {
			fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			return []int{fd}
		}
	}
	memory := func(size, n int) func(t *testing.T) []int {
		return func(t *testing.T) []int {
			var fds []int
			for range n {
				fd, err := unix.MemfdCreate("x", unix.MFD_CLOEXEC)
				if err = errors.Join(err, unix.Ftruncate(fd, int64(size))); err != nil {
					t.Fatal(err)
				}
				fds = append(fds, fd)
			}
			return fds
		}
	}
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, []byte("1234"), 0o600); err != nil {
		t.Fatal(err)
	}
	const four = `{"protocol":1,"op":"record","vm":"x","credentials":[{"host":"a","bytes":3},{"host":"b","bytes":1}]}`
	for name, c := range map[string]struct {
		body string
		fds  func(t *testing.T) []int
		want string
	}{
		"right": {four, memory(4, 1), ""}, "short": {four, memory(3, 1), "3 bytes, and 4"}, "long": {four, memory(5, 1), "5 bytes, and 4"},
		"two": {four, memory(4, 2), "too many"}, "ten": {four, memory(4, 10), "too many"},
		"zero": {four, open("/dev/zero", unix.O_RDONLY), "no memory file"}, "directory": {four, open("/", unix.O_RDONLY), "no memory file"},
		"file": {four, open(file, unix.O_RDONLY), "no memory file"}, "path": {four, open(file, unix.O_PATH), "no memory file"},
		"pipe": {four, func(t *testing.T) []int {
			p := make([]int, 2)
			if err := unix.Pipe2(p, unix.O_CLOEXEC); err != nil {
				t.Fatal(err)
			}
			_ = unix.Close(p[1])
			return p[:1]
		}, "no memory file"},
		"unasked":  {`{"protocol":1,"op":"take","vm":"x"}`, memory(4, 1), "nothing was said of"},
		"negative": {`{"protocol":1,"op":"record","credentials":[{"host":"a","bytes":5},{"host":"b","bytes":-1}]}`, memory(4, 1), "more than"},
		"huge":     {`{"protocol":1,"op":"record","credentials":[{"host":"a","bytes":1048577}]}`, memory(1048577, 1), "more than"},
		"many": {
			`{"protocol":1,"op":"record","credentials":[` + strings.Repeat(`{"host":"a","bytes":0},`, MaxCredentials) + `{"host":"a","bytes":0}]}`,
			memory(0, 1), "more than 1023",
		},
	} {
		t.Run(name, func(t *testing.T) {
			x, y := pair(t)
			a := arena(t)
			_ = a.Kind() // its pages
			before := descriptors(t)
			fds := c.fds(t)
			raw(t, x, framed(c.body), fds...)
			for _, fd := range fds {
				_ = unix.Close(fd)
			}
			_, _, _, err := ReceiveRequest(y, a, MaxFrame)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if after := descriptors(t); after != before {
				t.Errorf("%d descriptors before, %d after", before, after)
			}
		})
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

func TestAFileThatShrinks(t *testing.T) {
	fd, err := unix.MemfdCreate("x", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := split(fd, arena(t), []Credential{{Bytes: 4}}); err == nil || !strings.Contains(err.Error(), "shorter") {
		t.Error(err)
	}
}

func FuzzRequest(f *testing.F) {
	for _, r := range []Request{
		{Protocol: 1, Op: Take, VM: "x"},
		{Protocol: 1, Op: Refuse, VM: "x", Refusals: []Refusal{{"h", "r"}}},
		{Protocol: 1, Op: Record, VM: "x", Credentials: []Credential{{"h", "g", 3, "smbios", "v"}}},
	} {
		b, _ := json.Marshal(r)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var r, again Request
		if decode(b, &r) != nil {
			return
		}
		out, err := json.Marshal(r)
		if err == nil {
			err = decode(out, &again)
		}
		if second, _ := json.Marshal(again); err != nil || !bytes.Equal(out, second) {
			t.Errorf("%v: %s, then %s", err, out, second)
		}
	})
}

func FuzzAnswer(f *testing.F) {
	b, _ := json.Marshal(Answer{Problems: []Problem{{Message: "m"}}, Delivered: []Delivered{{Host: "h"}}, Health: &State{PID: 1}})
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		var r, again Answer
		if decode(b, &r) != nil {
			return
		}
		out, err := json.Marshal(r)
		if err == nil {
			err = decode(out, &again)
		}
		if second, _ := json.Marshal(again); err != nil || !bytes.Equal(out, second) {
			t.Errorf("%v: %s, then %s", err, out, second)
		}
	})
}
