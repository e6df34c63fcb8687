// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	invalid  = "Failed to validate config"
	inDevice = "Error from device manager"
)

// rustText is an operating system's error as Rust prints it.
func rustText(err error) string {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return err.Error()
	}
	text := errno.Error()
	return fmt.Sprintf("%s%s (os error %d)", strings.ToUpper(text[:1]), text[1:], int(errno))
}

// makeVM does what comes before a VM is there: what fails here leaves none.
func (v *vmm) makeVM() error {
	if err := validate(v.config); err != nil {
		return err
	}
	for _, d := range v.config.list("disks") {
		if err := openDisk(d.(object)); err != nil {
			// The real program has taken the disks out of its configuration by
			// then: a second boot goes without them.
			delete(v.config, "disks")
			return err
		}
	}
	for _, n := range v.config.list("net") {
		if err := useTaps(n.(object)); err != nil {
			return err
		}
	}
	for _, list := range []string{"fs", "generic_vhost_user"} {
		for _, d := range v.config.list(list) {
			if err := v.connect(d.(object).text("socket")); err != nil {
				return err
			}
		}
	}
	if initrd := v.config.at("payload").text("initramfs"); initrd != "" {
		if err := readable(initrd); err != nil {
			return failed(err, "Cannot open initramfs file")
		}
	}
	return v.bindVsock()
}

func validate(c object) error {
	payload, cpus, memory := c.at("payload"), c.at("cpus"), c.at("memory")
	if payload.text("kernel") == "" && payload.text("firmware") == "" {
		return chain{invalid, "Payload configuration is not bootable", "No bootitem provided: neither firmware nor kernel"}
	}
	boot, most := cpus["boot_vcpus"].(uint64), cpus["max_vcpus"].(uint64)
	if most < boot {
		return chain{invalid, fmt.Sprintf("Max CPUs (%d) lower than boot CPUs (%d)", most, boot)}
	}
	users := len(c.list("fs")) + len(c.list("generic_vhost_user"))
	if users > 0 && memory["shared"] != true && memory["hugepages"] != true {
		return chain{invalid, "Using vhost-user requires using shared memory or huge pages"}
	}
	if cid, ok := c.at("vsock")["cid"].(uint64); ok && cid < 3 {
		return chain{invalid, fmt.Sprintf("%d is a special VSOCK CID", cid)}
	}
	return nil
}

func validateNet(c, n object) error {
	if c.at("payload").text("kernel") == "" && c.at("payload").text("firmware") == "" {
		return chain{"Payload configuration is not bootable", "No bootitem provided: neither firmware nor kernel"}
	}
	for _, list := range []string{"disks", "net", "fs"} {
		for _, other := range c.list(list) {
			if id := n.text("id"); id != "" && other.(object).text("id") == id {
				return chain{"Identifier " + id + " is not unique"}
			}
		}
	}
	queues, fds := n["num_queues"].(uint64), uint64(2*len(n.list("fds")))
	if fds > 0 && queues != fds {
		return chain{fmt.Sprintf("Number of queues (%d) to virtio_net does not match the number of FDs (%d)", queues, fds)}
	}
	return nil
}

func openDisk(d object) error {
	name := d.text("path")
	flags := os.O_RDWR
	if d["readonly"] == true {
		flags = os.O_RDONLY
	}
	f, err := os.OpenFile(name, flags, 0)
	if err != nil {
		return failed(err, inDevice, "Cannot open disk path", "I/O error (path="+name+" op=open)")
	}
	return f.Close()
}

// useTaps: a descriptor that is no tap is found out only here.
func useTaps(n object) error {
	for _, fd := range n.list("fds") {
		request, err := unix.NewIfreq("x")
		if err != nil {
			return err
		}
		if err := unix.IoctlIfreq(fd.(int), unix.TUNGETIFF, request); err != nil {
			return failed(err, inDevice, "Cannot create virtio-net device", "Using existing tap",
				fmt.Sprintf("Ioctl failed (%d)", unix.TUNGETIFF))
		}
	}
	return nil
}

// connect waits for a vhost-user daemon, with which nothing is then spoken. As in
// the real program nobody is answered meanwhile.
func (v *vmm) connect(socket string) error {
	until := time.Now().Add(v.options.VhostWait)
	for {
		c, err := net.Dial("unix", socket)
		if err == nil {
			return c.Close()
		}
		if time.Now().After(until) {
			return chain{inDevice, "Cannot create virtio-fs device", "Failed connecting the backend"}
		}
		<-time.After(min(v.options.VhostWait/10, 100*time.Millisecond))
	}
}

// bindVsock: the socket's file goes with the VM, and stays behind a kill.
func (v *vmm) bindVsock() error {
	socket := v.config.at("vsock").text("socket")
	if socket == "" {
		return nil
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return failed(err, inDevice, "Cannot create virtio-vsock backend", "Error binding to the host-side Unix socket")
	}
	v.vsock = l
	return nil
}

// load reads the kernel: what fails here leaves a VM that does not run.
func (v *vmm) load() error {
	kernel := v.config.at("payload").text("kernel")
	if kernel == "" {
		return chain{"the stand-in does not play firmware"}
	}
	f, err := os.Open(kernel)
	if err != nil {
		return failed(err, "Cannot open kernel file")
	}
	defer f.Close()
	head := make([]byte, 0x206)
	n, err := f.ReadAt(head, 0)
	isELF := bytes.HasPrefix(head, []byte("\x7fELF"))
	if !isELF && n < len(head) && err != nil && n == 0 {
		return bzImage("Unable to read bzImage header")
	}
	if !isELF && !bytes.Equal(head[0x202:], []byte("HdrS")) {
		return bzImage("Invalid bzImage")
	}
	return nil
}

func bzImage(why string) error {
	return chain{
		"Cannot load the kernel into memory",
		"Kernel Loader: failed to load bzImage kernel image: Kernel Loader: " + why, "Kernel Loader: " + why,
	}
}

func readable(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	return f.Close()
}

// landlock fails on what has no place in the file system, by the kernel's rules:
// pipes and memory files by descriptor.
func landlock(c object) error {
	names := []string{c.at("payload").text("kernel"), c.at("payload").text("initramfs"), c.at("serial").text("file")}
	for _, d := range c.list("disks") {
		names = append(names, d.(object).text("path"))
	}
	for _, name := range names {
		if !strings.HasPrefix(name, "/proc/self/fd/") {
			continue
		}
		to, err := os.Readlink(name)
		if err == nil && strings.HasPrefix(to, "/") && !strings.HasPrefix(to, "/memfd:") {
			continue
		}
		text := rustText(syscall.EBADFD)
		return chain{
			"Failed to apply landlock config during vm_create", "Error creating/adding/restricting ruleset",
			"failed to add a rule: " + text, text,
		}
	}
	return nil
}
