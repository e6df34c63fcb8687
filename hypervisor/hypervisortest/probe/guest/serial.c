/* SPDX-License-Identifier: Apache-2.0 */
/* COM1, polled. Waits for the transmitter, so a slow reader loses nothing. */
#include "probe.h"

#define COM1 0x3f8
#define FIFO 16

static int room;

void serial_init(void)
{
	outb(COM1 + 1, 0x00); /* no interrupts */
	outb(COM1 + 3, 0x80); /* 115200 baud, 8N1 */
	outb(COM1 + 0, 0x01);
	outb(COM1 + 1, 0x00);
	outb(COM1 + 3, 0x03);
	outb(COM1 + 2, 0x07); /* FIFO on and empty */
	outb(COM1 + 4, 0x03); /* DTR, RTS */
	/* An 8250 without a FIFO takes one byte at a time. */
	room = 0;
}

static int fifo(void)
{
	return (inb(COM1 + 2) & 0xc0) == 0xc0 ? FIFO : 1;
}

void put_byte(uint8_t c)
{
	if (!room) {
		while (!(inb(COM1 + 5) & 0x20))
			;
		room = fifo();
	}
	outb(COM1, c);
	room--;
}

/* Returns when the last byte has left: switching off loses what is in the FIFO. */
void serial_drain(void)
{
	while (!(inb(COM1 + 5) & 0x40))
		;
	room = 0;
}

void put(const char *s)
{
	while (*s)
		put_byte(*s++);
}

void put_dec(uint32_t v)
{
	uint8_t buf[10];
	uint32_t n = write_dec(buf, v);
	for (uint32_t i = 0; i < n; i++)
		put_byte(buf[i]);
}

void put_hex(uint32_t v, int digits)
{
	while (digits--)
		put_byte("0123456789abcdef"[v >> (4 * digits) & 15]);
}

/* Anything but plain visible ASCII, and "%" itself, becomes %xx. */
void put_escaped(const uint8_t *s, size_t n)
{
	for (; n; n--, s++) {
		if (*s > 0x20 && *s < 0x7f && *s != '%') {
			put_byte(*s);
		} else {
			put_byte('%');
			put_hex(*s, 2);
		}
	}
}

void fail(const char *what)
{
	put("probe: error ");
	put(what);
	put("\n");
}
