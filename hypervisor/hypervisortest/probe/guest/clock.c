/* SPDX-License-Identifier: Apache-2.0 */
/* Limits for waiting, counted in the seconds of the real-time clock. */
#include "probe.h"

#define INDEX 0x70
#define DATA 0x71

#define POLLS 20000000 /* without a tick: there is no such clock */

static uint8_t second(void)
{
	outb(INDEX, 0);
	return inb(DATA);
}

/* Lasts for at least so many seconds. */
struct patience patience(uint32_t seconds)
{
	struct patience p = {seconds + 1, POLLS, second()};
	return p;
}

/* Returns 0 once it is over. Each look leaves the guest, so its host can work. */
int patience_left(struct patience *p)
{
	uint8_t now = second();
	if (now != p->second) {
		p->second = now;
		p->polls = POLLS;
		if (p->ticks)
			p->ticks--;
	}
	return p->ticks && p->polls && --p->polls;
}
