/* SPDX-License-Identifier: Apache-2.0 */
/* A virtio 1.x device on PCI, polled, and its split queues. */
#ifndef VIRTIO_H
#define VIRTIO_H

#include "probe.h"

#define VIRTIO_QUEUE 16 /* descriptors of each queue, a power of two */

struct virtio_region {
	uint32_t offset; /* in its BAR */
	uint8_t bar;
};

struct virtio {
	uint32_t function; /* the PCI function as the configuration port wants it */
	uint8_t window;    /* its VIRTIO_PCI_CAP_PCI_CFG capability, 0: none */
	uint32_t notify_multiplier;
	struct virtio_region common, notify, device;
};

struct virtio_descriptor {
	uint64_t at;
	uint32_t bytes;
	uint16_t flags, next;
};

struct virtio_queue {
	struct virtio_descriptor descriptors[VIRTIO_QUEUE];
	struct {
		uint16_t flags, index, ring[VIRTIO_QUEUE], event;
	} available;
	struct {
		uint16_t flags, index;
		struct {
			uint32_t id, bytes;
		} ring[VIRTIO_QUEUE];
		uint16_t event;
	} used __attribute__((aligned(4)));
	uint32_t doorbell; /* in the notify region */
	uint16_t number, seen;
} __attribute__((aligned(16)));

/* pci.c */
int virtio_find(struct virtio *d, uint16_t device);
uint32_t virtio_read(const struct virtio *d, const struct virtio_region *r, uint32_t at, int bytes);
void virtio_write(const struct virtio *d, const struct virtio_region *r, uint32_t at, int bytes, uint32_t v);

/* virtio.c */
int virtio_start(struct virtio *d, struct virtio_queue *const *queues, int n);
void virtio_chain(volatile struct virtio_queue *q, int first, const void *head, uint32_t head_bytes, const void *data,
		  uint32_t data_bytes, int device_writes);
void virtio_offer(const struct virtio *d, volatile struct virtio_queue *q, uint16_t first);
void virtio_ring(const struct virtio *d, const volatile struct virtio_queue *q);
int virtio_used(volatile struct virtio_queue *q);

#endif
