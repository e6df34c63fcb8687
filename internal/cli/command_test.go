// SPDX-License-Identifier: Apache-2.0

package cli_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/vmcred/vmcred/hypervisor/hypervisortest/probe"
)

// commands are what scripts can do beyond testscript's own.
func commands() map[string]func(*testscript.TestScript, bool, []string) {
	return map[string]func(*testscript.TestScript, bool, []string){
		"exits":   plain(exits),
		"json":    plain(jsonIs),
		"value":   plain(value),
		"repeat":  plain(repeat),
		"own":     plain(own),
		"give":    plain(give),
		"on-tty":  plain(onTTY),
		"start":   plain(start),
		"await":   plain(await),
		"signal":  plain(signal),
		"press":   plain(press),
		"killvmm": plain(killVMM),
		"finish":  plain(finish),
		"dial":    plain(dial),
		"guest":   plain(guest),
	}
}

// plain is a command without a negation.
func plain(f func(*testscript.TestScript, []string)) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		if neg {
			ts.Fatalf("this command has no !")
		}
		f(ts, args)
	}
}

// exits CODE COMMAND… runs a command that ends with exactly this status.
func exits(ts *testscript.TestScript, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	if got := status(err); got != args[0] {
		ts.Fatalf("exit status %s, want %s", got, args[0])
	}
}

func status(err error) string {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return "0"
	case errors.As(err, &exit):
		if !exit.Exited() {
			return exit.String()
		}
		return strconv.Itoa(exit.ExitCode())
	}
	return err.Error()
}

// json PATH WANT looks into the last standard output: "plan.entries.0.host".
// "len" at the end of the path is the length of a list.
func jsonIs(ts *testscript.TestScript, args []string) {
	var v any
	d := json.NewDecoder(strings.NewReader(ts.ReadFile("stdout")))
	ts.Check(d.Decode(&v))
	if d.More() {
		ts.Fatalf("more than one JSON value")
	}
	for key := range strings.SplitSeq(args[0], ".") {
		switch t := v.(type) {
		case map[string]any:
			in, ok := t[key]
			if !ok {
				ts.Fatalf("%s: there is no %q among %v", args[0], key, t)
			}
			v = in
		case []any:
			if key == "len" {
				v = len(t)
				continue
			}
			i, err := strconv.Atoi(key)
			if err != nil || i >= len(t) {
				ts.Fatalf("%s: no element %s of %d", args[0], key, len(t))
			}
			v = t[i]
		default:
			ts.Fatalf("%s: %v has no %q", args[0], v, key)
		}
	}
	if got := fmt.Sprint(v); got != args[1] {
		ts.Fatalf("%s is %s, want %s", args[0], got, args[1])
	}
}

// value FILE BYTES writes a value of that many bytes.
func value(ts *testscript.TestScript, args []string) {
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	write(ts, args[0], bytes.Repeat([]byte("v"), n))
}

// repeat FILE WORD N replaces a word in a file by n letters.
func repeat(ts *testscript.TestScript, args []string) {
	n, err := strconv.Atoi(args[2])
	ts.Check(err)
	write(ts, args[0], []byte(strings.ReplaceAll(ts.ReadFile(args[0]), args[1], strings.Repeat("v", n))))
}

func write(ts *testscript.TestScript, name string, b []byte) {
	path := ts.MkAbs(name)
	ts.Check(os.WriteFile(path, b, 0o644))
	ts.Check(os.Lchown(path, user(), -1))
}

// own MODE FILE… gives files to who runs the program, with that mode.
func own(ts *testscript.TestScript, args []string) {
	mode, err := strconv.ParseUint(args[0], 8, 12)
	ts.Check(err)
	for _, f := range args[1:] {
		ts.Check(os.Chmod(ts.MkAbs(f), os.FileMode(mode)))
		ts.Check(os.Lchown(ts.MkAbs(f), user(), -1))
	}
}

// give UID FILE gives a file to another user. Only root can.
func give(ts *testscript.TestScript, args []string) {
	uid, err := strconv.Atoi(args[0])
	ts.Check(err)
	ts.Check(os.Lchown(ts.MkAbs(args[1]), uid, -1))
}

// dial PATH FILE TEXT connects to a socket and keeps in FILE what comes, until
// TEXT has come.
func dial(ts *testscript.TestScript, args []string) {
	c, err := net.Dial("unix", ts.MkAbs(args[0]))
	ts.Check(err)
	defer c.Close()
	var all []byte
	for buf := make([]byte, 4096); !bytes.Contains(all, []byte(args[2])); {
		n, err := c.Read(buf)
		all = append(all, buf[:n]...)
		if err != nil {
			ts.Fatalf("%v before %q came: %q", err, args[2], all)
		}
	}
	write(ts, args[1], all)
}

// guest FILE WANT… reads the probe guest's last report in a console's output. It
// got these credentials in SMBIOS strings and no others: NAME:FILE is a secret
// with a file's bytes, NAME=TEXT is static.
func guest(ts *testscript.TestScript, args []string) {
	rounds := strings.Split(ts.ReadFile(args[0]), probe.Last)
	if len(rounds) < 2 {
		ts.Fatalf("no report of the guest in %s", args[0])
	}
	r, err := probe.Parse(strings.NewReader(rounds[len(rounds)-2] + probe.Last + "\n"))
	ts.Check(err)
	var got, want []string
	for _, s := range r.OEM() {
		for _, str := range s.Strings {
			got = append(got, fmt.Sprintf("%x", str.SHA256))
		}
	}
	for _, a := range args[1:] {
		str := "io.systemd.credential:" + a
		if name, file, secret := strings.Cut(a, ":"); secret {
			str = "io.systemd.credential.binary:" + name + "=" + base64.StdEncoding.EncodeToString([]byte(ts.ReadFile(file)))
		}
		want = append(want, fmt.Sprintf("%x", sha256.Sum256([]byte(str))))
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		ts.Fatalf("the guest has other strings than %q: %d of them, want %d", args[1:], len(got), len(want))
	}
}
