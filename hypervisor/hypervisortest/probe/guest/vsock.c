/* SPDX-License-Identifier: Apache-2.0 */
/* Sends messages to the host over virtio-vsock (virtio 1.2, 5.10): one stream
 * connection at a time, all begun here. What the host sends is counted and
 * thrown away. */
#include "virtio.h"

#define DEVICE 0x1053
#define STREAM 1

#define OP_REQUEST 1
#define OP_RESPONSE 2
#define OP_RST 3
#define OP_SHUTDOWN 4
#define OP_RW 5
#define OP_CREDIT_UPDATE 6
#define OP_CREDIT_REQUEST 7

#define NO_MORE_RECEIVING 1
#define NO_MORE_SENDING 2
#define NEITHER (NO_MORE_RECEIVING | NO_MORE_SENDING)

#define PART 4096u             /* bytes of a packet */
#define BUFFERS (VIRTIO_QUEUE / 2)
#define CREDIT (BUFFERS * PART) /* what the host may have under way */
#define FIRST_PORT 1023u        /* systemd takes a privileged one, too */

struct header {
	uint64_t from_cid, to_cid;
	uint32_t from_port, to_port, bytes;
	uint16_t type, op;
	uint32_t flags, credit, forwarded;
} __attribute__((packed));

static struct virtio device;
static struct virtio_queue receive, transmit, event;
static struct header headers[BUFFERS], outgoing;
static uint8_t buffers[BUFFERS][PART];
static uint32_t own_cid, last_port;

static struct {
	struct vsock_address host;
	uint32_t port, sent, received, host_credit, host_forwarded;
	uint8_t connected, reset, host_shut; /* host_shut: NO_MORE_... as the host means it */
	struct patience left;
} c;

/* Finds and starts the device. Returns 0 after a report of why it cannot. */
int vsock_open(void)
{
	struct virtio_queue *const queues[] = {&receive, &transmit, &event};
	if (!virtio_find(&device, DEVICE)) {
		fail("no-vsock-device");
		return 0;
	}
	if (!virtio_start(&device, queues, 3)) {
		fail("vsock-device-does-not-start");
		return 0;
	}
	own_cid = virtio_read(&device, &device.device, 0, 4);
	for (int i = 0; i < BUFFERS; i++) {
		virtio_chain(&receive, 2 * i, &headers[i], sizeof headers[i], buffers[i], PART, 1);
		virtio_offer(&device, &receive, 2 * i);
	}
	return 1;
}

/* Sends one packet, and returns 0 if the device does not take it in time. */
static int packet(uint16_t op, uint32_t flags, const uint8_t *data, uint32_t n)
{
	struct header h = {own_cid, c.host.cid, c.port, c.host.port, n, STREAM, op, flags, CREDIT, c.received};
	outgoing = h;
	virtio_chain(&transmit, 0, &outgoing, sizeof outgoing, data, n, 0);
	virtio_offer(&device, &transmit, 0);
	for (uint32_t look = 1; virtio_used(&transmit) < 0; look++) {
		if (!patience_left(&c.left))
			return 0;
		/* A vhost-user device may miss the first one: it is told that the
		 * queue is on while the guest goes on already. */
		if (look % 256 == 0)
			virtio_ring(&device, &transmit);
	}
	return 1;
}

static void take(const struct header *h)
{
	if (h->from_cid != c.host.cid || h->from_port != c.host.port || h->to_port != c.port)
		return; /* of a connection before */
	c.host_credit = h->credit;
	c.host_forwarded = h->forwarded;
	switch (h->op) {
	case OP_RESPONSE:
		c.connected = 1;
		break;
	case OP_RST:
		c.reset = 1;
		break;
	case OP_SHUTDOWN:
		c.host_shut |= h->flags & NEITHER;
		break;
	case OP_RW:
		c.received += h->bytes;
		packet(OP_CREDIT_UPDATE, 0, 0, 0);
		break;
	case OP_CREDIT_REQUEST:
		packet(OP_CREDIT_UPDATE, 0, 0, 0);
		break;
	}
}

/* Takes what has come. Returns 0 when the time for this connection is over. */
static int turn(void)
{
	int first;
	while ((first = virtio_used(&receive)) >= 0) {
		take(&headers[first / 2]);
		virtio_offer(&device, &receive, first);
	}
	return patience_left(&c.left);
}

static enum ending connect(void)
{
	if (!packet(OP_REQUEST, 0, 0, 0))
		return TIMED_OUT;
	while (!c.connected && !c.reset)
		if (!turn())
			return TIMED_OUT;
	return c.reset ? REFUSED : CLOSED;
}

static enum ending send(const uint8_t *message, uint32_t n)
{
	while (c.sent < n) {
		uint32_t part = n - c.sent, under_way = c.sent - c.host_forwarded;
		uint32_t room = c.host_credit > under_way ? c.host_credit - under_way : 0;
		if (c.reset || c.host_shut & NO_MORE_RECEIVING)
			return CUT;
		if (part > PART)
			part = PART;
		if (part > room)
			part = room;
		if (part && !packet(OP_RW, 0, message + c.sent, part))
			return TIMED_OUT;
		c.sent += part;
		if (!turn())
			return TIMED_OUT;
	}
	return CLOSED;
}

/* Returns CLOSED once the host sends no more, as recv(2) in a Linux guest would
 * return 0: after a shutdown, or a reset. */
static enum ending await_close(int half_close)
{
	if (half_close && !packet(OP_SHUTDOWN, NO_MORE_SENDING, 0, 0))
		return TIMED_OUT;
	while (!c.reset && !(c.host_shut & NO_MORE_SENDING))
		if (!turn())
			return TIMED_OUT;
	return CLOSED;
}

/* Leaves the connection as close(2) does. */
static void leave(void)
{
	c.left = patience(1);
	if (c.reset)
		return;
	if (c.host_shut == NEITHER) {
		packet(OP_RST, 0, 0, 0);
		return;
	}
	if (packet(OP_SHUTDOWN, NEITHER, 0, 0))
		while (!c.reset && turn())
			;
	if (!c.reset)
		packet(OP_RST, 0, 0, 0);
}

/* Sends a message over a connection of its own and waits for the host to close. */
enum ending vsock_send(const struct vsock_address *to, const uint8_t *message, uint32_t n, int half_close,
		       uint32_t seconds)
{
	memset(&c, 0, sizeof c);
	c.host = *to;
	c.port = last_port = last_port > 512 ? last_port - 1 : FIRST_PORT;
	c.left = patience(seconds);
	enum ending e = connect();
	if (e == CLOSED)
		e = send(message, n);
	if (e == CLOSED)
		e = await_close(half_close);
	leave();
	return e;
}
