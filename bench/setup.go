// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// nobody is who the programs run as when this runs as root: the runner would
// otherwise want a system user for each VM.
const nobody = 65534

type bench struct {
	dir, memory, vmcred, empty, standIn string
	env                                 []string
}

// prepare builds the stand-in and the empty program.
func prepare(dir, vmcred string) (b *bench, err error) {
	b = &bench{dir: dir, empty: filepath.Join(dir, "empty"), standIn: filepath.Join(dir, "bin", "qemu-system-x86_64")}
	b.vmcred = filepath.Join(dir, "vmcred")
	// Where both lie in real life: in memory.
	if b.memory, err = os.MkdirTemp("/dev/shm", "vmcred-bench-"); err != nil {
		return nil, err
	}
	run, log := filepath.Join(b.memory, "run"), filepath.Join(dir, "state")
	for _, d := range []string{filepath.Join(dir, "bin"), run, log} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return nil, err
		}
	}
	for _, argv := range [][]string{
		{"gcc", "-O2", "-static", "-o", b.standIn, "bench/standin/standin.c"},
		{"go", "build", "-trimpath", "-ldflags=-s -w", "-o", b.empty, "./bench/empty"},
		{"cp", vmcred, b.vmcred},
	} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%s: %w\n%s", argv[0], err, out)
		}
	}
	b.env = []string{"PATH=" + filepath.Join(dir, "bin") + ":/usr/bin:/bin", "XDG_RUNTIME_DIR=" + run, "XDG_CONFIG_HOME=" + dir, "XDG_STATE_HOME=" + log}
	if os.Geteuid() == 0 {
		return b, errors.Join(os.Chmod(dir, 0o755), os.Chmod(b.memory, 0o755), os.Chown(run, nobody, nobody), os.Chmod(run, 0o700), os.Chown(log, nobody, nobody))
	}
	return b, nil
}

// user makes the command run as an ordinary user.
func (b *bench) user(cmd *exec.Cmd) *exec.Cmd {
	cmd.Env = b.env
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	return cmd
}

func name(i int) string { return fmt.Sprintf("host-key-%03d", i) }

// credentials makes a directory of n secrets of 44 bytes.
func (b *bench) credentials(n int) (string, error) {
	dir := filepath.Join(b.memory, fmt.Sprintf("credentials-%d", n))
	if err := os.Mkdir(dir, 0o755); errors.Is(err, os.ErrExist) {
		return dir, nil
	} else if err != nil {
		return "", err
	}
	for i := range n {
		raw := make([]byte, 32)
		if _, err := rand.Read(raw); err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(dir, name(i)), []byte(base64.StdEncoding.EncodeToString(raw)), 0o444); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// ours returns what runs vmcred with n credentials.
func (b *bench) ours(n int, cmdline string) (func() *exec.Cmd, error) {
	creds, err := b.credentials(n)
	if err != nil {
		return nil, err
	}
	var text strings.Builder
	fmt.Fprintf(&text, "version: 1\nhypervisor: qemu\nmemory: 128MiB\nqemu: {accel: tcg}\nboot: {kernel: %s, cmdline: %q}\nstatic: {ENVIRONMENT: test}\ncredentials:\n", b.vmcred, cmdline)
	for i := range n {
		fmt.Fprintf(&text, "  %s: {}\n", name(i))
	}
	file := filepath.Join(b.dir, fmt.Sprintf("bench-%d%s.yaml", n, cmdline))
	if err := os.WriteFile(file, []byte(text.String()), 0o644); err != nil {
		return nil, err
	}
	return func() *exec.Cmd {
		return b.user(exec.Command(b.vmcred, "run", file, "--credentials", creds))
	}, nil
}

// seeds returns what runs the shell script with n credentials.
func (b *bench) seeds(n int) func() *exec.Cmd {
	var names []string
	for i := range n {
		names = append(names, name(i))
	}
	return func() *exec.Cmd {
		cmd := exec.Command("bench/seeds.sh", append([]string{b.standIn, "oem_strings=[io.systemd.credential:ENVIRONMENT=test]"}, names...)...)
		cmd.Env = append(b.env, "CREDENTIALS_DIRECTORY="+filepath.Join(b.memory, fmt.Sprintf("credentials-%d", n)))
		return cmd
	}
}

// resident returns the runner's VmRSS in KiB once the VM runs.
func (b *bench) resident(n int) (int, error) {
	start, err := b.ours(n, "stay")
	if err != nil {
		return 0, err
	}
	cmd := start()
	said, err := cmd.StderrPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	lines, last := bufio.NewScanner(said), name(n-1)
	for lines.Scan() && !strings.Contains(lines.Text(), "delivered "+last) {
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return 0, err
	}
	for lines.Scan() {
	}
	if err := cmd.Wait(); err != nil {
		return 0, err
	}
	for line := range bytes.Lines(status) {
		if rest, ok := bytes.CutPrefix(line, []byte("VmRSS:")); ok {
			return strconv.Atoi(strings.Fields(string(rest))[0])
		}
	}
	return 0, errors.New("no VmRSS in /proc/PID/status")
}
