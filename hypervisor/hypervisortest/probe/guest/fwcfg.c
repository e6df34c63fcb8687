/* SPDX-License-Identifier: Apache-2.0 */
/* QEMU's fw_cfg device (qemu docs/specs/fw_cfg.rst), by DMA where there is one. */
#include "probe.h"

#define SELECTOR 0x510
#define DATA 0x511
#define DMA 0x514

#define KEY_SIGNATURE 0x00
#define KEY_ID 0x01
#define KEY_DIRECTORY 0x19

#define DMA_ERROR 1
#define DMA_READ 2

struct dma {
	uint32_t control, length, address_hi, address_lo; /* big-endian */
} __attribute__((packed));

struct file {
	uint32_t size;   /* big-endian */
	uint16_t select; /* big-endian */
	uint16_t reserved;
	char name[56];
} __attribute__((packed));

static int has_dma;
static uint8_t buffer[65536];

static uint32_t swap32(uint32_t v) { return __builtin_bswap32(v); }

static void read_next(void *to, uint32_t n)
{
	if (!has_dma) {
		for (uint8_t *p = to; n; n--)
			*p++ = inb(DATA);
		return;
	}
	volatile struct dma d = {swap32(DMA_READ), swap32(n), 0, swap32((uint32_t)to)};
	outl(DMA, 0);
	outl(DMA + 4, swap32((uint32_t)&d));
	while (d.control & swap32(~DMA_ERROR))
		;
	if (d.control)
		fail("fw_cfg-dma");
	__asm__ volatile("" : : : "memory");
}

static int present(void)
{
	char signature[4];
	uint32_t id;
	has_dma = 0;
	outw(SELECTOR, KEY_SIGNATURE);
	read_next(signature, 4);
	if (memcmp(signature, "QEMU", 4))
		return 0;
	outw(SELECTOR, KEY_ID);
	read_next(&id, 4);
	has_dma = id >> 1 & 1;
	return 1;
}

static void report_file(const struct file *f, int digest_all)
{
	uint32_t size = swap32(f->size), left = size;
	struct sha256 s;
	put("probe: fw_cfg name=");
	uint32_t n = 0;
	while (n < sizeof f->name && f->name[n])
		n++;
	put_escaped((const uint8_t *)f->name, n);
	put(" bytes=");
	put_dec(size);
	if (!digest_all && memcmp(f->name, "opt/", 4)) {
		put("\n"); /* the VMM's own: ACPI tables, option ROMs */
		return;
	}
	outw(SELECTOR, f->select >> 8 | f->select << 8);
	sha256_start(&s);
	while (left) {
		uint32_t part = left < sizeof buffer ? left : sizeof buffer;
		read_next(buffer, part);
		sha256_add(&s, buffer, part);
		left -= part;
	}
	put_sha256(&s);
	put("\n");
}

void report_fw_cfg(int digest_all)
{
	static struct file directory[4096];
	uint32_t count;
	if (!present()) {
		put("probe: fw_cfg none\n");
		return;
	}
	outw(SELECTOR, KEY_DIRECTORY);
	read_next(&count, 4);
	count = swap32(count);
	if (count > sizeof directory / sizeof directory[0]) {
		fail("fw_cfg-directory-too-long");
		return;
	}
	read_next(directory, count * sizeof directory[0]);
	for (uint32_t i = 0; i < count; i++)
		report_file(&directory[i], digest_all);
}
