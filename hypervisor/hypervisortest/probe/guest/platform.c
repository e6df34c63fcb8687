/* SPDX-License-Identifier: Apache-2.0 */
/* What differs between VMMs: how the machine is switched off and reset. Which
 * one it is shows in the PCI host bridge. */
#include "probe.h"

struct platform {
	uint32_t bridge; /* device << 16 | vendor of PCI 0:0.0 */
	const char *name;
	uint16_t pm1_status;  /* ACPI PM1a status; enable is 2, control 4 bytes on; 0: see acpi.c */
	uint16_t sleep_port;  /* write sleep_value here to power off; 0: reset instead */
	uint16_t sleep_value;
};

static const struct platform platforms[] = {
	{0x29c08086, "q35", 0x600, 0x604, 0x2000},
	{0x12378086, "i440fx", 0x600, 0x604, 0x2000},
	{0x0d578086, "cloud-hypervisor", 0, 0x600, 0x34},
	{0, "unknown", 0, 0, 0},
};

static const struct platform *platform(void)
{
	outl(0xcf8, 0x80000000);
	uint32_t bridge = inl(0xcfc);
	const struct platform *p = platforms;
	while (p->bridge && p->bridge != bridge)
		p++;
	return p;
}

void platform_report(void)
{
	put("probe: platform ");
	put(platform()->name);
	put("\n");
}

void platform_halt(void)
{
	for (;;)
		__asm__ volatile("cli; hlt");
}

void platform_triple_fault(void)
{
	struct {
		uint16_t limit;
		uint32_t base;
	} __attribute__((packed)) none = {0, 0};
	__asm__ volatile("lidt %0; int3" : : "m"(none));
	platform_halt();
}

/* By the chip set, then by the keyboard controller, then by force. */
void platform_reset(void)
{
	outb(0xcf9, 0x02);
	outb(0xcf9, 0x06);
	for (int i = 0; i < 1000000 && (inb(0x64) & 2); i++)
		;
	outb(0x64, 0xfe);
	for (volatile int i = 0; i < 1000000; i++)
		;
	platform_triple_fault();
}

void platform_power_off(void)
{
	const struct platform *p = platform();
	if (!p->sleep_port)
		platform_reset(); /* Firecracker: a reset ends the VM */
	if (p->sleep_value < 0x100)
		outb(p->sleep_port, p->sleep_value);
	else
		outw(p->sleep_port, p->sleep_value);
	platform_halt();
}

void platform_await_power_button(uint32_t rsdp)
{
	uint16_t pm1 = platform()->pm1_status;
	if (!pm1) {
		uint64_t event = acpi_event_register(rsdp);
		if (event)
			acpi_await_power_button(event);
		else
			fail("no-power-button");
		return;
	}
	while (!(inw(pm1) & 0x100))
		;
	outw(pm1, 0x100);
}

/* The chip set notes a press only while the event is enabled. */
void platform_enable_power_button(void)
{
	uint16_t pm1 = platform()->pm1_status;
	if (pm1)
		outw(pm1 + 2, inw(pm1 + 2) | 0x100);
}
