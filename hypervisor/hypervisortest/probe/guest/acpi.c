/* SPDX-License-Identifier: Apache-2.0 */
/* The power button of a machine without ACPI's fixed hardware: a Generic Event
 * Device (ACPI 6.5, 5.6.9). What it reads is described by the AML only, so the
 * tables are walked from the RSDP to the DSDT, and its region is looked for there;
 * cloud-hypervisor has it at the top of the physical addresses. */
#include "probe.h"

#define PRESSED 8 /* cloud-hypervisor's bit of the power button */

struct table {
	char signature[4];
	uint32_t bytes;
	uint8_t rest[28]; /* of the header */
	uint8_t body[];
} __attribute__((packed));

static uint32_t u32(const uint8_t *p) { return p[0] | p[1] << 8 | p[2] << 16 | (uint32_t)p[3] << 24; }

/* A table's address, 0 if it is out of reach. */
static uint32_t address(const uint8_t *p) { return u32(p + 4) ? 0 : u32(p); }

static const struct table *named(uint32_t at, const char *signature)
{
	const struct table *t = (const struct table *)at;
	return at && !memcmp(t->signature, signature, 4) && t->bytes >= sizeof *t ? t : 0;
}

static const struct table *dsdt(uint32_t rsdp)
{
	const uint8_t *root = (const uint8_t *)rsdp;
	if (!rsdp || memcmp(root, "RSD PTR ", 8))
		return 0;
	const struct table *xsdt = named(address(root + 24), "XSDT");
	for (uint32_t i = 0; xsdt && i + 8 <= xsdt->bytes - sizeof *xsdt; i += 8) {
		const struct table *fadt = named(address(xsdt->body + i), "FACP");
		if (fadt && fadt->bytes >= 148) /* X_DSDT is at 140 */
			return named(address((const uint8_t *)fadt + 140), "DSDT");
	}
	return 0;
}

/* The address in an AML integer, 0 if it is none. */
static uint64_t integer(const uint8_t *p)
{
	switch (p[0]) {
	case 0x0c: /* DWordPrefix */
		return u32(p + 1);
	case 0x0e: /* QWordPrefix */
		return (uint64_t)u32(p + 5) << 32 | u32(p + 1);
	}
	return 0;
}

uint64_t acpi_event_register(uint32_t rsdp)
{
	/* ExtOpPrefix OpRegionOp, the name, SystemMemory */
	static const uint8_t region[] = {0x5b, 0x80, 'G', 'D', 'S', 'T', 0x00};
	const struct table *t = dsdt(rsdp);
	if (!t)
		return 0;
	const uint8_t *p = t->body, *end = (const uint8_t *)t + t->bytes;
	for (; end - p >= (int)sizeof region + 9; p++) {
		if (*p == region[0] && !memcmp(p, region, sizeof region))
			return integer(p + sizeof region);
	}
	return 0;
}

/* Reading clears it, and a press before the first look is kept. */
void acpi_await_power_button(uint64_t address)
{
	volatile uint8_t *event = map_device(address);
	while (!(*event & PRESSED))
		;
}
