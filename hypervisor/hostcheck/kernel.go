// SPDX-License-Identifier: Apache-2.0

package hostcheck

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Where the setup header of a Linux kernel has its magic (x86/boot.rst).
const (
	setupMagic   = "HdrS"
	setupMagicAt = 0x202
)

// kernel refuses what is no kernel: QEMU takes any file for a very old one, and
// says that it is too old for an initrd, or starts a guest that never says a word.
// A file that cannot be read here is for the VMM to judge.
func (c *Checker) kernel(field, path string) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return // Boot has said so
	}
	head := make([]byte, setupMagicAt+len(setupMagic))
	n, err := io.ReadFull(f, head)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return
	}
	head = head[:n]
	const elf = "\x7fELF"
	switch {
	case n == 0:
		c.Fault(field, QuotePath(path)+" is empty", kernelHint)
	case n >= len(elf) && string(head[:len(elf)]) == elf: // whether with a PVH note, the VMM says
	case n == setupMagicAt+len(setupMagic) && string(head[setupMagicAt:]) == setupMagic:
	default:
		c.Fault(field, QuotePath(path)+" is no kernel: neither a bzImage nor an ELF file", kernelHint)
	}
}

const kernelHint = "give the guest's kernel as its distribution has it in /boot (vmlinuz-…)"
