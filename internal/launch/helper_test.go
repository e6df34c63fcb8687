// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// The test binary plays every part itself: a runner that starts a VMM, and a VMM
// that tries what it must not be able to do.
const partEnv = "VMCRED_TEST_PART"

func TestMain(m *testing.M) {
	if part := os.Getenv(partEnv); part != "" {
		if err := play(strings.Fields(part)); err != nil {
			fmt.Fprintln(os.Stderr, part+":", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func play(part []string) error {
	switch part[0] {
	case "runner":
		return playRunner(part[1:])
	case "vmm":
		return playVMM()
	case "writer":
		return playWriter(part[1:])
	case "report":
		return playReport()
	default:
		return fmt.Errorf("no such part")
	}
}

// tale is what a runner says of itself and its VMM, one JSON object a line.
type tale struct {
	Runner, VMM int
	Confinement string
	Error       string
	Looked      string
}

// playRunner starts a VMM, as another user if a uid is given, joins the two
// standard streams and waits. With "look" it also looks at its VMM from many threads;
// with "keyed" its session has a key, which the VMM finds if it has that session's.
func playRunner(args []string) error {
	if err := Harden(); err != nil {
		return err
	}
	c := &Command{Path: "/proc/self/exe", Env: []string{partEnv + "=vmm"}, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	look := false
	for _, uid := range args {
		switch uid {
		case "look":
			look = true
			continue
		case "keyed":
			if err := giveKey(); err != nil {
				return err
			}
			continue
		}
		n, err := strconv.ParseUint(uid, 10, 32)
		if err != nil {
			return err
		}
		c.Identity = &Identity{UID: uint32(n), GID: uint32(n)}
	}
	p, err := c.Start()
	t := tale{Runner: os.Getpid()}
	if err != nil {
		t.Error = err.Error()
	} else {
		t.VMM, t.Confinement = p.PID(), p.Confinement()
	}
	if look && err == nil {
		t.Looked = lookAt(p.PID())
	}
	if err := json.NewEncoder(os.Stdout).Encode(t); err != nil {
		return err
	}
	if err == nil {
		<-p.Done()
	}
	return nil
}

// lookAt opens what a domain would close, from as many threads as it takes to
// have been on each.
func lookAt(pid int) string {
	answers := make(chan string)
	const threads = 16
	for range threads {
		go func() {
			runtime.LockOSThread()
			if err := readSome(procPath(pid, "environ")); err != nil {
				answers <- refusal(err)
				return
			}
			answers <- "done"
		}()
	}
	all := map[string]bool{}
	for range threads {
		all[<-answers] = true
	}
	return fmt.Sprint(slices.Sorted(maps.Keys(all)))
}

// playVMM answers each line "PID NAME" with how trying that on PID went: "done" or
// the refusal. It ends with its standard input.
func playVMM() error {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		rest, name, _ := strings.Cut(lines.Text(), " ")
		answer := "done"
		if pid, err := strconv.Atoi(rest); err != nil {
			answer = err.Error()
		} else if try, ok := attempts()[name]; !ok {
			answer = "no such attempt"
		} else if err := try(pid); err != nil {
			answer = refusal(err)
		}
		fmt.Println(answer)
	}
	return lines.Err()
}

// refusal keeps apart what was refused and what only did not work.
func refusal(err error) string {
	if errors.Is(err, fs.ErrPermission) {
		return "refused: " + err.Error()
	}
	return "failed: " + err.Error()
}

// cast is a running runner and its VMM, seen from a test.
type cast struct {
	tale
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines *bufio.Scanner
}

// startRunner starts a runner as uid (our own if negative) with the given
// arguments. Both are gone when the test ends.
func startRunner(t *testing.T, uid int, args ...string) *cast {
	t.Helper()
	c := &cast{cmd: exec.Command("/proc/self/exe")}
	c.cmd.Env = []string{partEnv + "=" + strings.Join(append([]string{"runner"}, args...), " ")}
	c.start(t, uid)
	if !c.lines.Scan() {
		t.Fatal("the runner says nothing")
	}
	if err := json.Unmarshal(c.lines.Bytes(), &c.tale); err != nil || c.Error != "" {
		t.Fatalf("the runner says %s (%v)", c.lines.Text(), err)
	}
	t.Logf("runner %d, vmm %d: %s", c.Runner, c.VMM, c.Confinement)
	return c
}

// start starts the process. It ends with its input, when the test does.
func (c *cast) start(t *testing.T, uid int) {
	t.Helper()
	c.cmd.Stderr = os.Stderr
	if uid >= 0 && uid != os.Geteuid() {
		c.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	var err error
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.in.Close() // the VMM ends with its input, the runner with the VMM
		_ = c.cmd.Wait()
	})
	c.lines = bufio.NewScanner(out)
}

// startFree starts what a VMM is without any confinement, as uid.
func startFree(t *testing.T, uid int) *cast {
	t.Helper()
	c := &cast{cmd: exec.Command("/proc/self/exe")}
	c.cmd.Env = []string{partEnv + "=vmm"}
	c.start(t, uid)
	return c
}

// try has the VMM try something on a process and returns its answer.
func (c *cast) try(t *testing.T, name string, pid int) string {
	t.Helper()
	if _, err := fmt.Fprintln(c.in, pid, name); err != nil {
		t.Fatal(err)
	}
	if !c.lines.Scan() {
		t.Fatalf("the VMM is gone after %s", name)
	}
	return c.lines.Text()
}

// needRoot skips a test that only root can play.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root: it starts processes of other users")
	}
}
