// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/delivery"
	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/cloudhypervisor"
	"github.com/vmcred/vmcred/hypervisor/console"
	"github.com/vmcred/vmcred/hypervisor/hypervisortest/probe"
	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/internal/testkvm"
	"github.com/vmcred/vmcred/secret"
	"github.com/vmcred/vmcred/vm"
)

// patience ends a start that hangs.
const patience = time.Minute

// secrets is how many of 44 bytes the VM of these measurements has.
const secrets = 3

// realVM is one VM of the real cloud-hypervisor, started in either way.
type realVM struct {
	driver *cloudhypervisor.Driver
	launch hypervisor.Launch // without its console
	argv   []string          // of the same VM, after the program
	set    *credential.Set
}

// cloudHypervisor compares the two ways a VM gets its strings. The guest is the
// same, and reports what it got: its last line ends each measurement.
func (b *bench) cloudHypervisor(pairs int) error {
	if _, err := exec.LookPath("cloud-hypervisor"); err != nil {
		fmt.Println("SKIPPED: start by API against start by command line: cloud-hypervisor is not on PATH")
		return nil
	}
	done, err := testkvm.ToAll()
	if err != nil {
		fmt.Println("SKIPPED: start by API against start by command line: needs KVM:", err)
		return nil
	}
	defer done()
	v, err := b.realVM()
	if err != nil {
		return err
	}
	defer v.set.Close()
	var ours, theirs times
	var access []float64
	for i := range pairs + 1 {
		from := time.Now()
		if ps := vm.Problems(v.driver.CheckAccess(v.launch.Spec, v.launch.Info, v.launch.Identity)).Fatal(); len(ps) > 0 {
			return ps
		}
		checked := time.Since(from).Seconds()
		if err := errors.Join(ours.note(v.byAPI), theirs.note(v.byArgv)); err != nil {
			return err
		}
		ours.wall[i] -= checked // Start does that first, before there is a VMM
		access = append(access, checked)
	}
	// The first of each is a warm-up.
	report("cloud-hypervisor, API, argv, time", ours.wall[1:], theirs.wall[1:], "≤ 1.05×", false)
	report("cloud-hypervisor, API, argv, CPU", ours.cpu[1:], theirs.cpu[1:], "", false)
	fmt.Printf("before that, what the VM's user may open: %.2f ms\n", 1e3*median(access))
	return b.ready(v, max(pairs/3, 10))
}

// note adds what one start took, and what the VMM took of the processor until its end.
func (t *times) note(start func() (time.Duration, error)) error {
	var before, after syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_CHILDREN, &before); err != nil {
		return err
	}
	took, err := start()
	if err != nil {
		return err
	}
	if err := syscall.Getrusage(syscall.RUSAGE_CHILDREN, &after); err != nil {
		return err
	}
	used := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
	t.wall, t.cpu = append(t.wall, took.Seconds()), append(t.cpu, float64(used)/1e9)
	return nil
}

// realVM prepares the VM. Its user is the one that the other measurements have.
func (b *bench) realVM() (*realVM, error) {
	elf, err := probe.Make()
	if err != nil {
		return nil, err
	}
	kernel := filepath.Join(b.dir, "probe.elf")
	if out, err := exec.Command("install", "-m", "644", elf, kernel).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("install: %w: %s", err, out)
	}
	v := &realVM{driver: cloudhypervisor.New(cloudhypervisor.Options{CacheDir: b.dir}), set: credential.NewSet()}
	spec := &vm.Spec{
		Name: "bench", Hypervisor: "cloud-hypervisor", CPUs: 1, Memory: 128 << 20, Boot: vm.Boot{Kernel: kernel},
		Console: vm.Console{Mode: vm.ConsoleStdout}, Guest: vm.Guest{Systemd: 257}, Notify: vm.NotifyBoot, Unit: "vmcred@bench.service",
	}
	info, err := v.driver.Probe(context.Background())
	if err != nil {
		return nil, err
	}
	var texts []string
	for i := range secrets {
		value := []byte(strings.Repeat(string(rune('a'+i)), 44))
		s, err := secret.Make(len(value), func(p []byte) (int, error) { return copy(p, value), nil })
		if err != nil {
			return nil, err
		}
		guest := fmt.Sprintf("HOST_KEY_%03d", i)
		if err := v.set.AddSecret(name(i), guest, s); err != nil {
			return nil, err
		}
		texts = append(texts, "io.systemd.credential.binary:"+guest+"="+base64.StdEncoding.EncodeToString(value))
	}
	plan, refusals := delivery.Make(v.driver.Offers(spec, info), delivery.Guest{Systemd: spec.Guest.Systemd}, v.set.Metas())
	if len(refusals) > 0 {
		return nil, refusals[0]
	}
	v.launch = hypervisor.Launch{
		Spec: spec, Info: info, Plan: plan, RunDir: filepath.Join(b.memory, "run"), Log: io.Discard,
		Deliver: func(context.Context) (*delivery.Payload, error) { return plan.Encode(v.set) },
	}
	if os.Geteuid() == 0 {
		v.launch.Identity = &launch.Identity{UID: nobody, GID: nobody}
	}
	v.argv = []string{
		"--kernel", kernel, "--cpus", "boot=1", "--memory", "size=128M", "--console", "off", "--rng", "src=/dev/urandom",
		"--platform", "oem_strings=[" + strings.Join(texts, ",") + "]", "--serial", "file=/proc/self/fd/3",
	}
	return v, nil
}

// lastLine is a console that notes when the guest has reported.
type lastLine struct {
	said string
	at   chan time.Time // one, with the guest's last line
}

func newLastLine() *lastLine { return &lastLine{at: make(chan time.Time, 1)} }

// Write is called by one goroutine.
func (l *lastLine) Write(p []byte) (int, error) {
	had := strings.Contains(l.said, probe.Last)
	l.said += string(p)
	if !had && strings.Contains(l.said, probe.Last) {
		l.at <- time.Now()
	}
	return len(p), nil
}

func (l *lastLine) since(from time.Time) (time.Duration, error) {
	select {
	case at := <-l.at:
		return at.Sub(from), nil
	case <-time.After(patience):
		return 0, errors.New("the guest never reported")
	}
}

// byAPI starts the VM with our driver, in this process, and waits for its end.
func (v *realVM) byAPI() (time.Duration, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	said := newLastLine()
	l := v.launch
	l.Console = said
	from := time.Now()
	m, err := v.driver.Start(ctx, l)
	if err != nil {
		return 0, err
	}
	took, err := said.since(from)
	if err != nil {
		return 0, errors.Join(err, m.Kill())
	}
	for range m.Events() {
	}
	_, err = m.Wait(ctx)
	return took, err
}

// byArgv starts the same VM as its users do today. It is confined and its console is
// read as the other's is: the way of the strings is all that differs.
func (v *realVM) byArgv() (time.Duration, error) {
	said := newLastLine()
	con, err := console.OpenPipe(v.launch.Spec.Console, v.launch.Identity, said)
	if err != nil {
		return 0, err
	}
	defer con.Finish(patience)
	c := &launch.Command{Path: v.launch.Info.Path, Args: v.argv, Env: []string{}, Identity: v.launch.Identity}
	c.Donate("console", con.Child())
	from := time.Now()
	proc, err := c.Start()
	if err != nil {
		return 0, err
	}
	con.Started()
	took, err := said.since(from)
	if err != nil {
		return 0, errors.Join(err, proc.Kill())
	}
	<-proc.Done()
	return took, nil
}

// ready measures a whole run of the program to what the host's systemd hears.
func (b *bench) ready(v *realVM, runs int) error {
	creds, err := b.credentials(secrets)
	if err != nil {
		return err
	}
	text := fmt.Sprintf("version: 1\nhypervisor: cloud-hypervisor\nmemory: 128MiB\nboot: {kernel: %s, cmdline: %s}\n"+
		"guest: {systemd: 257}\nvsock: {cid: 3}\nnotify: guest\ncredentials:\n", v.launch.Spec.Boot.Kernel, probe.WordReady)
	for i := range secrets {
		text += "  " + name(i) + ": {}\n"
	}
	file := filepath.Join(b.dir, "ready.yaml")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return err
	}
	var took []float64
	for range runs {
		d, err := b.readyOnce(file, creds, filepath.Dir(v.launch.Info.Path))
		if err != nil {
			return err
		}
		took = append(took, d.Seconds())
	}
	fmt.Printf("cloud-hypervisor, vmcred run to the guest's READY=1 at the host: %.1f ms\n", 1e3*median(took))
	return nil
}

func (b *bench) readyOnce(file, creds, programs string) (time.Duration, error) {
	path := filepath.Join(b.memory, "run", "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return 0, err
	}
	defer l.Close()
	defer os.Remove(path)
	if err := errors.Join(os.Chmod(path, 0o666), l.SetReadDeadline(time.Now().Add(patience))); err != nil {
		return 0, err
	}
	cmd := b.user(exec.Command(b.vmcred, "run", file, "--credentials", creds))
	cmd.Env = append([]string{"NOTIFY_SOCKET=" + path, "PATH=" + programs}, b.env[1:]...)
	var said strings.Builder
	cmd.Stderr = &said
	from := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	message := make([]byte, 4096)
	for {
		n, err := l.Read(message)
		if err != nil {
			return 0, errors.Join(fmt.Errorf("no READY=1: %w: %s", err, said.String()), cmd.Process.Kill(), cmd.Wait())
		}
		if strings.Contains(string(message[:n]), "READY=1") {
			break
		}
	}
	took := time.Since(from)
	return took, cmd.Wait()
}
