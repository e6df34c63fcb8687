// SPDX-License-Identifier: Apache-2.0

package testrun

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const (
	sector    = 512
	firstPart = 2048 * sector // where partitioning programs begin, too
	grubDir   = "/usr/lib/grub/i386-pc"
)

// cloudImage makes a disk as cloud images are: a qcow2 file with a partition table,
// a boot loader in front and an ext4 file system with the guest's kernel. Nothing is
// mounted for it.
func cloudImage(t *testing.T, dir, guest string) string {
	t.Helper()
	boot := filepath.Join(dir, "root", "boot")
	if err := os.MkdirAll(filepath.Join(boot, "grub"), 0o755); err != nil {
		t.Fatal(err)
	}
	read := func(path string) []byte {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	write := func(path string, b []byte) string {
		t.Helper()
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write(filepath.Join(boot, "vmlinuz"), read(filepath.Join(guest, "vmlinuz")))
	write(filepath.Join(boot, "initrd"), squeezed(t, read(filepath.Join(guest, "initrd"))))
	write(filepath.Join(boot, "grub", "grub.cfg"), fmt.Appendf(nil,
		"set timeout=0\nmenuentry guest {\n linux /boot/vmlinuz %s\n initrd /boot/initrd\n}\n", bytes.TrimSpace(read(filepath.Join(guest, "cmdline")))))
	early := write(filepath.Join(dir, "early.cfg"), []byte("set prefix=(hd0,msdos1)/boot/grub\nset root=(hd0,msdos1)\nconfigfile $prefix/grub.cfg\n"))
	part, core, raw, disk := filepath.Join(dir, "part"), filepath.Join(dir, "core"), filepath.Join(dir, "raw"), filepath.Join(dir, "disk.qcow2")
	tool(t, "mke2fs", "-q", "-t", "ext4", "-b", "4096", "-d", filepath.Join(dir, "root"), part, "64M")
	tool(t, "grub-mkimage", "-O", "i386-pc", "-o", core, "-c", early, "-p", "(hd0,msdos1)/boot/grub",
		"biosdisk", "part_msdos", "ext2", "linux", "configfile", "normal")
	write(raw, partitioned(read(filepath.Join(grubDir, "boot.img")), read(core), read(part)))
	tool(t, "qemu-img", "convert", "-O", "qcow2", raw, disk)
	return disk
}

// squeezed: a firmware reads slowly where a processor is emulated.
func squeezed(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// partitioned is a disk with one partition. The boot loader's first sector loads the
// rest of it from the sectors behind, which is where its image looks by itself.
func partitioned(boot, core, part []byte) []byte {
	disk := make([]byte, firstPart, firstPart+len(part))
	const code, table = 440, 446
	copy(disk, boot[:code])
	copy(disk[sector:], core)
	entry := disk[table:]
	entry[0], entry[4] = 0x80, 0x83 // active, Linux
	binary.LittleEndian.PutUint32(entry[8:], firstPart/sector)
	binary.LittleEndian.PutUint32(entry[12:], uint32(len(part)/sector))
	disk[sector-2], disk[sector-1] = 0x55, 0xaa
	return append(disk, part...)
}

func tool(t *testing.T, name string, args ...string) {
	t.Helper()
	path, err := sbin(name)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(path, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// sbin finds a program also where an ordinary user's PATH does not lead.
func sbin(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	if p, e := exec.LookPath("/usr/sbin/" + name); e == nil {
		return p, nil
	}
	return "", err
}
