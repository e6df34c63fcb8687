/* SPDX-License-Identifier: Apache-2.0 */
/* Finds a virtio device on the first PCI bus and reaches its registers (virtio
 * 1.2, 4.1.4). All go through the window in the configuration space, since a BAR
 * may lie above 4 GiB, where 32-bit code without paging does not reach. */
#include "virtio.h"

#define ADDRESS 0xcf8
#define DATA 0xcfc

#define COMMAND 0x04
#define COMMAND_MASTER 0x04
#define STATUS_HAS_LIST 0x100000 /* in the same word */
#define LIST 0x34

#define CAP_VENDOR 0x09
#define CAP_COMMON 1
#define CAP_NOTIFY 2
#define CAP_DEVICE 4
#define CAP_WINDOW 5

/* The window's own registers, from its capability on. */
#define WINDOW_BAR 4
#define WINDOW_OFFSET 8
#define WINDOW_BYTES 12
#define WINDOW_DATA 16

static void aim(uint32_t function, uint32_t at) { outl(ADDRESS, function | at); }

static uint32_t config(uint32_t function, uint32_t at)
{
	aim(function, at & ~3u);
	return inl(DATA) >> 8 * (at & 3);
}

static void open_window(const struct virtio *d, const struct virtio_region *r, uint32_t at, int bytes)
{
	aim(d->function, d->window + WINDOW_BAR);
	outb(DATA, r->bar);
	aim(d->function, d->window + WINDOW_OFFSET);
	outl(DATA, r->offset + at);
	aim(d->function, d->window + WINDOW_BYTES);
	outl(DATA, bytes);
	aim(d->function, d->window + WINDOW_DATA);
}

uint32_t virtio_read(const struct virtio *d, const struct virtio_region *r, uint32_t at, int bytes)
{
	open_window(d, r, at, bytes);
	return bytes == 1 ? inb(DATA) : bytes == 2 ? inw(DATA) : inl(DATA);
}

void virtio_write(const struct virtio *d, const struct virtio_region *r, uint32_t at, int bytes, uint32_t v)
{
	open_window(d, r, at, bytes);
	if (bytes == 1)
		outb(DATA, v);
	else if (bytes == 2)
		outw(DATA, v);
	else
		outl(DATA, v);
}

static void note_capability(struct virtio *d, uint32_t cap)
{
	struct virtio_region r = {config(d->function, cap + WINDOW_OFFSET), config(d->function, cap + WINDOW_BAR)};
	switch (config(d->function, cap) >> 24) {
	case CAP_COMMON:
		d->common = r;
		break;
	case CAP_NOTIFY:
		d->notify = r;
		d->notify_multiplier = config(d->function, cap + WINDOW_DATA);
		break;
	case CAP_DEVICE:
		d->device = r;
		break;
	case CAP_WINDOW:
		d->window = cap;
		break;
	}
}

static void walk_capabilities(struct virtio *d)
{
	if (!(config(d->function, COMMAND) & STATUS_HAS_LIST))
		return;
	uint32_t cap = config(d->function, LIST) & 0xfc;
	for (int i = 0; cap && i < 48; i++) { /* so many fit; a circle ends */
		uint32_t head = config(d->function, cap);
		if ((head & 0xff) == CAP_VENDOR)
			note_capability(d, cap);
		cap = head >> 8 & 0xfc;
	}
}

/* Finds the first device of this PCI id, and lets it reach memory. */
int virtio_find(struct virtio *d, uint16_t device)
{
	for (uint32_t slot = 0; slot < 32; slot++) {
		memset(d, 0, sizeof *d);
		d->function = 0x80000000 | slot << 11;
		if (config(d->function, 0) != ((uint32_t)device << 16 | 0x1af4))
			continue;
		walk_capabilities(d);
		uint16_t command = config(d->function, COMMAND);
		aim(d->function, COMMAND);
		outw(DATA, command | COMMAND_MASTER);
		return d->window != 0;
	}
	return 0;
}
