/* SPDX-License-Identifier: Apache-2.0 */
/* Starts a virtio device and moves buffers (virtio 1.2, 2.7 and 3.1). No
 * interrupts: who waits looks at the used ring. */
#include "virtio.h"

/* The common configuration, 4.1.4.3. */
#define FEATURE_SELECT 0x08 /* of the driver; the device's is 8 bytes before */
#define FEATURES 0x0c
#define STATUS 0x14
#define QUEUE_SELECT 0x16
#define QUEUE_SIZE 0x18
#define QUEUE_ENABLE 0x1c
#define QUEUE_NOTIFY 0x1e
#define QUEUE_DESCRIPTORS 0x20
#define QUEUE_AVAILABLE 0x28
#define QUEUE_USED 0x30

#define ACKNOWLEDGE 1
#define DRIVER 2
#define DRIVER_OK 4
#define FEATURES_OK 8

#define VERSION_1 1 /* bit 32, so the lowest of the second word */

#define NEXT 1
#define WRITE 2

static void common(const struct virtio *d, uint32_t at, int bytes, uint32_t v)
{
	virtio_write(d, &d->common, at, bytes, v);
}

static void address(const struct virtio *d, uint32_t at, const volatile void *p)
{
	common(d, at, 4, (uint32_t)p);
	common(d, at + 4, 4, 0);
}

static int start_queue(const struct virtio *d, struct virtio_queue *q, int number)
{
	memset(q, 0, sizeof *q);
	q->number = number;
	common(d, QUEUE_SELECT, 2, number);
	if (virtio_read(d, &d->common, QUEUE_SIZE, 2) < VIRTIO_QUEUE)
		return 0;
	common(d, QUEUE_SIZE, 2, VIRTIO_QUEUE);
	address(d, QUEUE_DESCRIPTORS, q->descriptors);
	address(d, QUEUE_AVAILABLE, &q->available);
	address(d, QUEUE_USED, &q->used);
	q->doorbell = virtio_read(d, &d->common, QUEUE_NOTIFY, 2) * d->notify_multiplier;
	common(d, QUEUE_ENABLE, 2, 1);
	return 1;
}

static int agree_on_features(const struct virtio *d)
{
	common(d, FEATURE_SELECT - 8, 4, 1);
	if (!(virtio_read(d, &d->common, FEATURES - 8, 4) & VERSION_1))
		return 0;
	common(d, FEATURE_SELECT, 4, 0);
	common(d, FEATURES, 4, 0);
	common(d, FEATURE_SELECT, 4, 1);
	common(d, FEATURES, 4, VERSION_1);
	common(d, STATUS, 1, ACKNOWLEDGE | DRIVER | FEATURES_OK);
	return virtio_read(d, &d->common, STATUS, 1) & FEATURES_OK;
}

int virtio_start(struct virtio *d, struct virtio_queue *const *queues, int n)
{
	struct patience reset = patience(1);
	common(d, STATUS, 1, 0);
	while (virtio_read(d, &d->common, STATUS, 1))
		if (!patience_left(&reset))
			return 0;
	common(d, STATUS, 1, ACKNOWLEDGE);
	common(d, STATUS, 1, ACKNOWLEDGE | DRIVER);
	if (!agree_on_features(d))
		return 0;
	for (int i = 0; i < n; i++)
		if (!start_queue(d, queues[i], i))
			return 0;
	common(d, STATUS, 1, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
	return 1;
}

/* Describes a buffer of two parts in the descriptors first and first + 1. The
 * second part is left out if it is empty. */
void virtio_chain(volatile struct virtio_queue *q, int first, const void *head, uint32_t head_bytes, const void *data,
		  uint32_t data_bytes, int device_writes)
{
	volatile struct virtio_descriptor *d = &q->descriptors[first];
	uint16_t write = device_writes ? WRITE : 0;
	d[0].at = (uint32_t)head;
	d[0].bytes = head_bytes;
	d[0].flags = data_bytes ? write | NEXT : write;
	d[0].next = first + 1;
	if (!data_bytes)
		return;
	d[1].at = (uint32_t)data;
	d[1].bytes = data_bytes;
	d[1].flags = write;
}

/* Gives the device the chain that begins with this descriptor. x86 keeps the
 * order of stores, so only the compiler must be held. */
void virtio_offer(const struct virtio *d, volatile struct virtio_queue *q, uint16_t first)
{
	__asm__ volatile("" : : : "memory");
	q->available.ring[q->available.index % VIRTIO_QUEUE] = first;
	q->available.index++;
	virtio_ring(d, q);
}

/* Tells the device to look at the queue; once too often does no harm. */
void virtio_ring(const struct virtio *d, const volatile struct virtio_queue *q)
{
	virtio_write(d, &d->notify, q->doorbell, 2, q->number);
}

/* Returns the first descriptor of the next chain the device is done with, or -1. */
int virtio_used(volatile struct virtio_queue *q)
{
	if (q->used.index == q->seen)
		return -1;
	uint32_t id = q->used.ring[q->seen++ % VIRTIO_QUEUE].id;
	__asm__ volatile("" : : : "memory");
	return id % VIRTIO_QUEUE;
}
