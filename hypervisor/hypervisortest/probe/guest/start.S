/* SPDX-License-Identifier: Apache-2.0 */
/* The PVH entry point: 32-bit protected mode, flat segments, paging off,
 * EBX holds the address of the start info (Xen docs/misc/pvh.pandoc). */

	.section .note.pvh, "a", @note
	.balign 4
	.long 4, 4, 18			/* name size, value size, XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz "Xen"
	.long _start

	.section .text.start, "ax"
	.code32
	.globl _start
_start:
	cli
	cld
	movl $stack_top, %esp
	pushl %ebx
	call probe_main
1:	hlt
	jmp 1b

	.section .bss
	.balign 16
	.skip 16384
stack_top:

	.section .note.GNU-stack, "", @progbits
