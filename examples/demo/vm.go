// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// bootTimeout is for machines far slower than any this was tried on.
const bootTimeout = 3 * time.Minute

// planned is what "vmcred plan --json" says.
type planned struct {
	Plan struct {
		Entries []struct {
			Host, Guest, Kind, Channel string
			Len                        int `json:"bytes"`
		} `json:"entries"`
	} `json:"plan"`
}

func (d *demo) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, d.vmcred, args...)
	cmd.Env = d.env
	cmd.Stderr = os.Stdout
	return cmd
}

func plan(ctx context.Context, d *demo) error {
	show := d.command(ctx, "plan", vmName)
	show.Stdout = os.Stdout
	if err := show.Run(); err != nil {
		return err
	}
	asJSON := d.command(ctx, "plan", vmName, "--json")
	asJSON.Stderr = io.Discard // the same warnings as above
	out, err := asJSON.Output()
	if err != nil {
		return err
	}
	return json.Unmarshal(out, &d.plan)
}

// vmProcess is the running "vmcred run".
type vmProcess struct {
	cmd  *exec.Cmd
	said []string // the guest's lines that begin with "demo: ", without it
	rest chan error
}

// start runs the VM until the guest has said everything.
func start(ctx context.Context, d *demo) error {
	cmd := d.command(context.WithoutCancel(ctx), "run", vmName)
	console, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	d.vm = &vmProcess{cmd: cmd, rest: make(chan error, 1)}
	d.undo = append(d.undo, d.vm.kill)
	timer := time.AfterFunc(bootTimeout, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
	defer timer.Stop()
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	lines := bufio.NewScanner(console)
	for lines.Scan() {
		line, ok := strings.CutPrefix(strings.TrimRight(lines.Text(), "\r"), "demo: ")
		if !ok {
			continue
		}
		d.vm.said = append(d.vm.said, line)
		if line == "done" {
			// The rest of the console has to be read, or the guest waits.
			go func() { _, err := io.Copy(io.Discard, console); d.vm.rest <- err }()
			return nil
		}
	}
	if err := errors.Join(lines.Err(), ctx.Err()); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return err // its own words are above
	}
	return errors.New("the guest ended before it had said everything")
}

// kill ends what is left of the VM after a failure.
func (v *vmProcess) kill() error {
	if v.cmd.ProcessState == nil {
		_ = v.cmd.Process.Signal(syscall.SIGKILL)
		_ = v.cmd.Wait()
	}
	return nil
}

// powerOff does what "systemctl stop" does, and looks for what is left.
func powerOff(_ context.Context, d *demo) error {
	qemu, err := onlyChild(d.vm.cmd.Process.Pid)
	if err != nil {
		return err
	}
	if err := d.vm.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	if err := <-d.vm.rest; err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	if err := d.vm.cmd.Wait(); err != nil {
		return err
	}
	fmt.Println("the guest powered off; exit status 0")
	return leftovers(qemu, d.runDir)
}

// leftovers looks for the hypervisor's process and for the VM's runtime directory.
func leftovers(qemu int, runDir string) error {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", qemu))
	if err == nil && strings.Contains(string(b), "qemu-system") {
		return fmt.Errorf("process %d is left running", qemu)
	}
	if _, err := os.Lstat(runDir); err == nil {
		return fmt.Errorf("%s is left behind", runDir)
	}
	return nil
}
