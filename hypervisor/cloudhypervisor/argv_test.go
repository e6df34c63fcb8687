// SPDX-License-Identifier: Apache-2.0

package cloudhypervisor

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/hypervisor/cloudhypervisor/api"
	"github.com/vmcred/vmcred/hypervisor/hostcheck"
	"github.com/vmcred/vmcred/hypervisor/hypervisortest/probe"
	"github.com/vmcred/vmcred/shim"
)

// goldens are the recorded command lines that can be run here. A GPU is only in a
// patched program; what a host may lack is taken out of a line, and said.
const goldens = "ch35-repeated-flags disks extraargs hotplug-balloon-huge macvtap-multiqueue-pci no-socket no-vsock-no-oem seed"

// TestArgvAgainstBody: the real program, started with a foreign command line, says of
// its VM what it says when the driver starts it with what the command line was
// understood as.
func TestArgvAgainstBody(t *testing.T) {
	needReal(t)
	if os.Geteuid() != 0 || !hostcheck.Exists(hostcheck.Tun) {
		t.Skip("SKIPPED: needs root and " + hostcheck.Tun + " for taps")
	}
	for _, name := range strings.Fields(goldens) {
		t.Run(name, func(t *testing.T) {
			s := stage(t, name)
			theirs := s.byArgv()
			ours := s.byDriver()
			for _, d := range differences("", theirs, ours) {
				if !s.mayDiffer(d.path) {
					t.Errorf("%s is %v by argv and %v by the driver", d.path, d.a, d.b)
				}
			}
		})
	}
}

// TestDevicesOfArgv: a device to hand over, which few hosts have, is in the body.
func TestDevicesOfArgv(t *testing.T) {
	command, problems := shim.Parse(recorded(t, "macvtap-multiqueue-pci"), "/")
	if command == nil {
		t.Fatal(problems)
	}
	got := decoded(t, command.Spec, tested, paths{}, nil)
	want := []any{map[string]any{"path": "/sys/bus/pci/devices/0000:01:00.0"}, map[string]any{"path": "/sys/bus/pci/devices/0000:01:00.1"}}
	if !reflect.DeepEqual(got["devices"], want) {
		t.Errorf("%v", got["devices"])
	}
}

// recorded is a command line of microvm.nix.
func recorded(t *testing.T, name string) []string {
	t.Helper()
	b, err := os.ReadFile("../../shim/testdata/" + name + ".json")
	if err != nil {
		t.Fatal(err)
	}
	var g struct{ Argv []string }
	if err := json.Unmarshal(b, &g); err != nil {
		t.Fatal(err)
	}
	return g.Argv
}

// play is one command line with paths of this host.
type play struct {
	t      *testing.T
	dir    string
	argv   []string
	socket string     // the program's API
	tap    []*os.File // by descriptor, from 3 on
	shared string     // a virtiofsd's socket; empty: none
}

// mayDiffer names what must not be the same, and nothing else.
func (s *play) mayDiffer(path string) bool {
	return slices.Contains([]string{
		"serial.mode", // Tty by argv; the driver's is the file below
		"serial.file", // the console's pipe, which is a descriptor of the program
		"net.0.tap",   // the driver opens each tap itself, and hands over
		"net.0.fds",   // its descriptors,
		"net.1.fds.0", // which have another number in each process
		"net.1.fds.1",
		"net.0.host_mac", // the tap's own, which the program asks for what it opened by name
	}, path)
}

// stage replaces each path of a recorded command line.
func stage(t *testing.T, name string) *play {
	t.Helper()
	s := &play{t: t, dir: place(t), argv: recorded(t, name)}
	if err := os.Chmod(s.dir, 0o777); err != nil { // the VM's user makes a socket here
		t.Fatal(err)
	}
	program, err := exec.LookPath("cloud-hypervisor")
	if err != nil {
		t.Fatal(err)
	}
	s.argv[0] = program
	kernel, err := os.ReadFile(probe.Build(t))
	if err != nil {
		t.Fatal(err)
	}
	put(t, s.at("kernel"), kernel, 0o644)
	put(t, s.at("initrd"), []byte("initrd"), 0o644)
	flag := ""
	for i := 1; i < len(s.argv); i++ {
		if strings.HasPrefix(s.argv[i], "--") {
			flag = s.argv[i]
		} else {
			s.replace(flag, i)
		}
	}
	s.drop()
	if s.socket == "" {
		s.socket = s.at("api.sock")
		s.argv = append(s.argv, "--api-socket", s.socket)
	}
	return s
}

func (s *play) at(name string) string { return filepath.Join(s.dir, name) }

// replace puts what this test has into argument i.
func (s *play) replace(flag string, i int) {
	word := &s.argv[i]
	switch flag {
	case "--kernel":
		*word = s.at("kernel")
	case "--initramfs":
		*word = s.at("initrd")
	case "--cmdline":
		*word = probe.WordWait
	case "--api-socket":
		*word, s.socket = s.at("api.sock"), s.at("api.sock")
	case "--serial":
		*word = strings.Replace(*word, "/srv/x", s.at("serial"), 1)
	case "--disk":
		*word = s.key(*word, "path", s.image(i, *word))
	case "--vsock":
		*word = s.key(*word, "socket", s.at("v.sock"))
	case "--fs":
		s.shared = s.at("fs.sock")
		*word = s.key(*word, "socket", s.shared)
	case "--net":
		if strings.Contains(*word, "fd=[3,4]") {
			tap := s.makeTap("vmcred-g1")
			for range 2 {
				f, err := openTap(tap, true)
				if err != nil {
					s.t.Fatal(err)
				}
				s.t.Cleanup(func() { _ = f.Close() })
				s.tap = append(s.tap, f)
			}
			return
		}
		*word = s.key(*word, "tap", s.makeTap("vmcred-g0"))
	}
}

// drop takes out what this host has not, loudly.
func (s *play) drop() {
	var out []string
	for i := 0; i < len(s.argv); i++ {
		w := s.argv[i]
		switch {
		case w == "--device":
			s.t.Log("DROPPED: --device: a device to hand over; that is compared as JSON alone")
			for i+1 < len(s.argv) && !strings.HasPrefix(s.argv[i+1], "--") {
				i++
			}
			continue
		case w == "--fs" && !hasVirtiofsd():
			s.t.Log("DROPPED: --fs: needs a virtiofsd in Rust on PATH")
			s.shared, i = "", i+1
			continue
		case strings.Contains(w, "hugepages=on") && !hasHugepages():
			s.t.Log("DROPPED: hugepages=on: this host has none to give")
			w = strings.Replace(w, "hugepages=on,", "", 1)
		}
		out = append(out, w)
	}
	s.argv = out
}

func hasVirtiofsd() bool {
	out, err := exec.Command("virtiofsd", "--version").CombinedOutput()
	return err == nil && strings.HasPrefix(string(out), "virtiofsd 1")
}

func hasHugepages() bool {
	b, err := os.ReadFile("/proc/meminfo")
	_, rest, ok := strings.Cut(string(b), "HugePages_Free:")
	f := strings.Fields(rest)
	return err == nil && ok && len(f) > 0 && f[0] != "0"
}

// key gives a key of an argument another value.
func (s *play) key(word, key, value string) string {
	parts := strings.Split(word, ",")
	for i, p := range parts {
		if strings.HasPrefix(p, key+"=") {
			parts[i] = key + "=" + value
		}
	}
	return strings.Join(parts, ",")
}

// image makes a disk of the format that the word says.
func (s *play) image(i int, word string) string {
	path := s.at("disk" + strconv.Itoa(i))
	args := []string{"create", "-q", "-f", "raw", path, "4M"}
	switch {
	case strings.Contains(word, "image_type=qcow2"):
		args[3] = "qcow2"
	case strings.Contains(word, "image_type=vhd"):
		args = slices.Insert(args, 4, "-o", "subformat=fixed")
		args[3] = "vpc"
	default:
		put(s.t, path, make([]byte, 4<<20), 0o666)
		return path
	}
	if _, err := exec.LookPath("qemu-img"); err != nil {
		if os.Getenv("CI") == "true" {
			s.t.Fatal("CI=true, and qemu-img is missing (apt install qemu-utils)")
		}
		s.t.Skip("SKIPPED: needs qemu-img (apt install qemu-utils)")
	}
	if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
		s.t.Fatalf("qemu-img: %v %s", err, out)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		s.t.Fatal(err)
	}
	return path
}

func (s *play) makeTap(name string) string {
	if out, err := exec.Command("ip", "tuntap", "add", "dev", name, "mode", "tap", "user", strconv.Itoa(ordinary), "multi_queue").CombinedOutput(); err != nil {
		s.t.Skipf("SKIPPED: a tap: %v %s", err, out)
	}
	s.t.Cleanup(func() { _ = exec.Command("ip", "link", "del", name).Run() })
	return name
}

// share starts a virtiofsd, which ends with the connection of its VM: that is what
// it returns a way to wait for. At its end it removes its socket.
func (s *play) share() (wait func()) {
	if s.shared == "" {
		return func() {}
	}
	c := exec.Command("virtiofsd", "--socket-path="+s.shared, "--shared-dir="+s.dir, "--sandbox=none")
	words, err := c.StderrPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		s.t.Fatal(err)
	}
	ended := make(chan struct{})
	s.t.Cleanup(func() { _ = c.Process.Kill(); <-ended })
	in := bufio.NewScanner(words)
	for in.Scan() && !strings.Contains(in.Text(), "Waiting for vhost-user") {
	}
	go func() {
		for in.Scan() {
		}
		_ = c.Wait()
		close(ended)
	}()
	if err := os.Chmod(s.shared, 0o666); err != nil {
		s.t.Fatal(err)
	}
	return func() { <-ended }
}

// byArgv is what the program says when it is started as the command line has it.
func (s *play) byArgv() map[string]any {
	t := s.t
	t.Helper()
	unshared := s.share()
	c := exec.Command(s.argv[0], s.argv[1:]...)
	c.ExtraFiles = s.tap
	console := &until{text: probe.Last, seen: make(chan struct{})}
	c.Stdout, c.Stderr = console, console
	s.pipe(console)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = c.Wait(); close(ended) }()
	t.Cleanup(func() { _ = c.Process.Kill(); <-ended })
	select {
	case <-console.seen:
	case <-ended:
		t.Fatalf("the program ended: %s", console.all.String())
	}
	client, err := dial(s.socket)
	if err != nil {
		t.Fatal(err)
	}
	config := configAt(t, client)
	if err := client.Do(t.Context(), "vmm.shutdown"); err != nil {
		t.Fatal(err)
	}
	<-ended
	_ = client.Close()
	unshared()
	for _, f := range []string{s.socket, s.at("v.sock"), s.shared, s.at("serial")} {
		if err := os.Remove(f); f != "" && err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	return config
}

// pipe stands where the program writes its serial port to, so that what it writes
// is heard.
func (s *play) pipe(to *until) {
	if !slices.Contains(s.argv, "file="+s.at("serial")) {
		return
	}
	if err := unix.Mkfifo(s.at("serial"), 0o600); err != nil {
		s.t.Fatal(err)
	}
	f, err := os.OpenFile(s.at("serial"), os.O_RDWR, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = f.Close() })
	go func() { _, _ = io.Copy(to, f) }()
}

// byDriver is what it says when the driver starts it.
func (s *play) byDriver() map[string]any {
	t := s.t
	t.Helper()
	s.share()
	command, problems := shim.Parse(s.argv, s.dir)
	if command == nil {
		t.Fatal(problems)
	}
	spec := command.Spec
	spec.Name, spec.Guest.Systemd = "golden", 257
	for i := range spec.Interfaces {
		if len(spec.Interfaces[i].FDs) > 0 {
			for j, f := range s.tap {
				spec.Interfaces[i].FDs[j] = int(f.Fd())
			}
		}
	}
	set := credential.NewSet()
	t.Cleanup(func() { _ = set.Close() })
	for _, st := range spec.Static {
		if err := set.AddStatic(st.Name, st.Value); err != nil {
			t.Fatal(err)
		}
	}
	l := launchWith(t, New(Options{}), spec, set)
	l.Console = io.Discard
	m := startOf(t, New(Options{}), l)
	config := configAt(t, m.client)
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	return config
}

func dial(path string) (*api.Client, error) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	f, err := c.File()
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(int(f.Fd()), true); err != nil {
		return nil, err
	}
	return api.New(f), nil
}

// configAt is what vm.info says the VM is. The strings are sorted: the guest takes
// the first of a name, and there are no two.
func configAt(t *testing.T, c *api.Client) map[string]any {
	t.Helper()
	b, err := c.Get(t.Context(), "vm.info")
	if err != nil {
		t.Fatal(err)
	}
	var info struct{ Config map[string]any }
	if err := json.Unmarshal(b, &info); err != nil {
		t.Fatal(err)
	}
	if p, ok := info.Config["platform"].(map[string]any); ok {
		if list, ok := p["oem_strings"].([]any); ok {
			slices.SortFunc(list, func(a, b any) int { return strings.Compare(a.(string), b.(string)) })
		}
	}
	return info.Config
}

type difference struct {
	path string
	a, b any
}

// differences compares what JSON was, leaf by leaf.
func differences(path string, a, b any) []difference {
	at := func(key string) string { return strings.TrimPrefix(path+"."+key, ".") }
	var out []difference
	switch x := a.(type) {
	case map[string]any:
		if y, ok := b.(map[string]any); ok {
			for key := range x {
				out = append(out, differences(at(key), x[key], y[key])...)
			}
			for key := range y {
				if _, both := x[key]; !both {
					out = append(out, differences(at(key), nil, y[key])...)
				}
			}
			return out
		}
	case []any:
		if y, ok := b.([]any); ok && len(x) == len(y) {
			for i := range x {
				out = append(out, differences(at(strconv.Itoa(i)), x[i], y[i])...)
			}
			return out
		}
	}
	if !reflect.DeepEqual(a, b) {
		out = append(out, difference{path, a, b})
	}
	return out
}
