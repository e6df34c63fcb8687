// SPDX-License-Identifier: Apache-2.0

package kvm

import "encoding/binary"

// Where things lie in the VM's memory, and what its program computes.
const (
	tablesAt = 0x1000 // three page tables
	dataAt   = 0x7000
	codeAt   = 0x8000
	window   = 2 << 20 // the second 2 MiB of addresses show the first again
	port     = 0x0e9
	data     = 0x1234_5678
	plainSum = data + 1
	sseSum   = 2 * plainSum
)

// program reads a word through the page tables, adds 1, writes it to the port,
// doubles it with SSE2, writes it again and halts.
func program() []byte {
	return []byte{
		0x8b, 0x04, 0x25, 0x00, 0x70, 0x20, 0x00, // mov  0x207000, %eax
		0x48, 0x83, 0xc0, 0x01, // add  $1, %rax
		0x66, 0xba, 0xe9, 0x00, // mov  $0xe9, %dx
		0xef,                   // out  %eax, (%dx)
		0x66, 0x0f, 0x6e, 0xc0, // movd %eax, %xmm0
		0x66, 0x0f, 0xfe, 0xc0, // paddd %xmm0, %xmm0
		0x66, 0x0f, 0x7e, 0xc0, // movd %xmm0, %eax
		0xef, // out  %eax, (%dx)
		0xf4, // hlt
	}
}

// fill writes the page tables, the data word and the program.
func fill(memory []byte) {
	const present, large = 3, 0x83
	put := func(at int, v uint64) { binary.LittleEndian.PutUint64(memory[at:], v) }
	put(tablesAt, tablesAt+0x1000|present)
	put(tablesAt+0x1000, tablesAt+0x2000|present)
	put(tablesAt+0x2000, 0|large)
	put(tablesAt+0x2000+8*(window>>21), 0|large)
	binary.LittleEndian.PutUint32(memory[dataAt:], data)
	copy(memory[codeAt:], program())
}

// registers is struct kvm_regs of linux/kvm.h.
type registers struct {
	rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp uint64
	r8, r9, r10, r11, r12, r13, r14, r15   uint64
	rip, rflags                            uint64
}

// segment is struct kvm_segment.
type segment struct {
	base                         uint64
	limit                        uint32
	selector                     uint16
	kind, present, dpl, db, s, l uint8
	g, avl, unusable, padding    uint8
}

// special is struct kvm_sregs.
type special struct {
	cs, ds, es, fs, gs, ss, tr, ldt segment
	gdt, idt                        struct {
		base  uint64
		limit uint16
		_     [3]uint16
	}
	cr0, cr2, cr3, cr4, cr8 uint64
	efer, apic              uint64
	interrupts              [4]uint64
}

// longMode sets flat 64-bit segments, paging, and CR4 as SSE needs it.
func (s *special) longMode() {
	code := segment{limit: 0xffffffff, selector: 8, kind: 11, present: 1, s: 1, l: 1, g: 1}
	flat := segment{limit: 0xffffffff, selector: 16, kind: 3, present: 1, s: 1, db: 1, g: 1}
	s.cs = code
	s.ds, s.es, s.fs, s.gs, s.ss = flat, flat, flat, flat, flat
	s.cr0 = 1<<31 | 1<<16 | 1<<5 | 1<<4 | 1<<1 | 1 // PG WP NE ET MP PE
	s.cr3 = tablesAt
	s.cr4 = 1<<10 | 1<<9 | 1<<5 // OSXMMEXCPT OSFXSR PAE
	s.efer = 1<<10 | 1<<8       // LMA LME
}
