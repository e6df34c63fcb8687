// SPDX-License-Identifier: Apache-2.0

package cli_test

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	ossignal "os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/vmcred/vmcred/hypervisor/hypervisortest/probe"
	"github.com/vmcred/vmcred/internal/cli"
)

// someone is the user scripts run as when the tests are root's: a number that
// no user of the machine has.
const someone = 65527

// TestMain makes the program a command of the scripts, as an ordinary user's.
// As root it becomes someone first: root's VMs stand in /etc and need a user.
func TestMain(m *testing.M) {
	syscall.Umask(0o022)
	if ossignal.Ignored(syscall.SIGHUP) { // tests that run under nohup(1) start programs that do not
		ossignal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	}
	testscript.Main(m, map[string]func(){
		"vmcred":      vmcred,
		"vmcred-root": func() { os.Exit(cli.Main(append([]string{"vmcred"}, os.Args[1:]...))) },
		"in-unit":     inUnit,
		// as microvm.nix starts it
		"microvm@no-such-user": func() { os.Exit(cli.Main(os.Args)) },
	})
}

func vmcred() {
	if os.Geteuid() == 0 {
		err := become()
		if err == nil {
			err = syscall.Exec("/proc/self/exe", os.Args, os.Environ())
		}
		fmt.Fprintln(os.Stderr, "becoming an ordinary user:", err)
		os.Exit(99)
	}
	os.Exit(cli.Main(os.Args))
}

func become() error {
	if err := syscall.Setgroups(nil); err != nil {
		return err
	}
	if err := syscall.Setgid(someone); err != nil {
		return err
	}
	return syscall.Setuid(someone)
}

// inUnit runs a command as systemd does: with its own pid in the environment.
func inUnit() {
	os.Setenv("INVOCATION_ID", "0123456789abcdef0123456789abcdef")
	os.Setenv("SYSTEMD_EXEC_PID", strconv.Itoa(os.Getpid()))
	os.Args = os.Args[1:]
	vmcred()
}

// TestLook runs the scripts that start no VM.
func TestLook(t *testing.T) {
	testscript.Run(t, params(t, "testdata/look", ""))
}

// TestRun runs the scripts that start real VMs, with the probe guest as kernel.
func TestRun(t *testing.T) {
	testscript.Run(t, params(t, "testdata/run", probe.Build(t)))
}

// TestForeign runs the scripts that start real VMs with cloud-hypervisor.
func TestForeign(t *testing.T) {
	if _, err := exec.LookPath("cloud-hypervisor"); err != nil {
		t.Skip("SKIPPED: needs cloud-hypervisor on PATH")
	}
	kvmAsUdevHasIt(t)
	testscript.Run(t, params(t, "testdata/ch", probe.Build(t)))
}

// kvmAsUdevHasIt opens the device to the scripts' user for the time of a test, where
// no udev runs.
func kvmAsUdevHasIt(t *testing.T) {
	t.Helper()
	const kvm = "/dev/kvm"
	f, err := os.OpenFile(kvm, os.O_RDWR, 0)
	if err != nil {
		t.Skipf("SKIPPED: needs KVM: %v", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 || st.Mode().Perm()&0o006 == 0o006 {
		return
	}
	if err := os.Chmod(kvm, 0o666); err != nil {
		t.Skipf("SKIPPED: %s cannot be opened to other users: %v", kvm, err)
	}
	t.Cleanup(func() { _ = os.Chmod(kvm, st.Mode().Perm()) })
}

// TestRoot runs the scripts about what only root meets.
func TestRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root, to see that root's VMs are refused without a user of their own")
	}
	testscript.Run(t, params(t, "testdata/root", ""))
}

func params(t *testing.T, dir, kernel string) testscript.Params {
	t.Helper()
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("CI=true, and qemu-system-x86_64 is missing")
		}
		t.Skip("SKIPPED: needs qemu-system-x86_64 (apt install qemu-system-x86)")
	}
	root := openDir(t)
	image := []byte("\x7fELF: a kernel that nobody boots")
	if kernel != "" {
		var err error
		if image, err = os.ReadFile(kernel); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "kernel"), image, 0o644); err != nil {
		t.Fatal(err)
	}
	return testscript.Params{
		Dir: dir, WorkdirRoot: root, Cmds: commands(), RequireUniqueNames: true,
		Deadline:      time.Now().Add(2 * patience), // a program that does not end fails its script
		UpdateScripts: os.Getenv("VMCRED_UPDATE") != "",
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "root":
				return os.Geteuid() == 0, nil
			case "mounts":
				return exec.Command("unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/etc").Run() == nil, nil
			case "vhost-vsock":
				_, err := os.Stat("/dev/vhost-vsock")
				return err == nil, nil
			}
			return false, fmt.Errorf("there is no condition %q", cond)
		},
		Setup: func(e *testscript.Env) error { return setUp(e, root) },
	}
}

// openDir is a directory that another user may look into; t.TempDir is not.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vmcred-cli-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// setUp leaves nothing of the machine's environment but PATH, and gives the
// files to who runs the scripts.
func setUp(e *testscript.Env, root string) error {
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		return err
	}
	bin, err := exec.LookPath("vmcred")
	if err != nil {
		return err
	}
	env := map[string]string{
		"WORK": e.WorkDir, "PATH": e.Getenv("PATH"), "HOME": e.WorkDir + "/home",
		"XDG_CONFIG_HOME": e.WorkDir + "/config", "XDG_RUNTIME_DIR": e.WorkDir + "/run",
		"KERNEL": root + "/kernel", "VMS": e.WorkDir + "/config/vmcred/vms",
		"QEMU": qemu, "BIN": filepath.Dir(bin), "CREDS": "$CREDENTIALS_DIRECTORY",
	}
	e.Vars = nil
	for k, v := range env {
		e.Vars = append(e.Vars, k+"="+v)
	}
	e.Values["procs"] = map[string]*proc{}
	for _, d := range []string{"HOME", "XDG_RUNTIME_DIR", "VMS"} {
		if err := os.MkdirAll(env[d], 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(env["XDG_RUNTIME_DIR"], 0o700); err != nil {
		return err
	}
	return filepath.WalkDir(e.WorkDir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if strings.HasSuffix(path, ".yaml") {
			if err := expand(path, root); err != nil {
				return err
			}
		}
		return os.Lchown(path, user(), -1)
	})
}

// expand fills in where the kernel is: files of a script know no variables.
func expand(path, root string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	s := strings.NewReplacer("$KERNEL", root+"/kernel", "$WORK", filepath.Dir(path)).Replace(string(b))
	return os.WriteFile(path, []byte(s), 0o644)
}

// user is who runs the program in scripts.
func user() int {
	if os.Geteuid() == 0 {
		return someone
	}
	return os.Geteuid()
}
