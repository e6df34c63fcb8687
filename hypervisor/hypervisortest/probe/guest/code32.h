/* SPDX-License-Identifier: Apache-2.0 */
/* Included before every C file: the compiler writes 32-bit assembly, and the
 * assembler is to put it into 64-bit objects, because most VMMs load ELF64 only. */
__asm__(".code32");
