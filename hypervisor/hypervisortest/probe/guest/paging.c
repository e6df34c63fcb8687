/* SPDX-License-Identifier: Apache-2.0 */
/* Reaches a device above 4 GiB: long mode's paging with pages of 2 MiB, in which
 * 32-bit code goes on (compatibility mode; a nested KVM may lack plain PAE). The
 * first GiB, with the guest in it, stays where it is. */
#include "probe.h"

#define PRESENT 0x01
#define WRITABLE 0x02
#define UNCACHED 0x18
#define LARGE 0x80
#define LARGE_PAGE 0x200000u
#define GIB 0x40000000u

static uint64_t top[512] __attribute__((aligned(4096)));
static uint64_t gib[512] __attribute__((aligned(4096)));
static uint64_t low[512] __attribute__((aligned(4096)));
static uint64_t device[512] __attribute__((aligned(4096)));

/* Returns where the address is from now on. Nothing else above 1 GiB is. */
volatile uint8_t *map_device(uint64_t address)
{
	for (uint32_t i = 0; i < 512; i++)
		low[i] = i * LARGE_PAGE | LARGE | WRITABLE | PRESENT;
	device[0] = (address & ~(uint64_t)(LARGE_PAGE - 1)) | LARGE | UNCACHED | WRITABLE | PRESENT;
	gib[0] = (uint32_t)low | WRITABLE | PRESENT;
	gib[1] = (uint32_t)device | WRITABLE | PRESENT;
	top[0] = (uint32_t)gib | WRITABLE | PRESENT;
	__asm__ volatile("mov %%cr4, %%eax; or $0x20, %%eax; mov %%eax, %%cr4\n\t" /* PAE */
			 "mov %0, %%cr3\n\t"
			 "mov $0xc0000080, %%ecx; rdmsr; or $0x100, %%eax; wrmsr\n\t" /* EFER.LME */
			 "mov %%cr0, %%eax; or $0x80000000, %%eax; mov %%eax, %%cr0" /* paging */
			 : : "S"(top) : "eax", "ecx", "edx", "memory");
	return (volatile uint8_t *)(GIB + (uint32_t)(address & (LARGE_PAGE - 1)));
}
