/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of the probe guest know of each other. The guest runs in
 * 32-bit protected mode without paging, interrupts, SSE or a C library. */
#ifndef PROBE_H
#define PROBE_H

#include <stddef.h>
#include <stdint.h>

/* io.c */
void outb(uint16_t port, uint8_t v);
void outw(uint16_t port, uint16_t v);
void outl(uint16_t port, uint32_t v);
uint8_t inb(uint16_t port);
uint16_t inw(uint16_t port);
uint32_t inl(uint16_t port);
void *memcpy(void *to, const void *from, size_t n);
void *memset(void *to, int c, size_t n);
int memcmp(const void *a, const void *b, size_t n);
size_t strlen(const char *s);

/* serial.c: COM1, one report line at a time */
void serial_init(void);
void serial_drain(void);
void put_byte(uint8_t c);
void put(const char *s);
void put_dec(uint32_t v);
void put_hex(uint32_t v, int digits);
void put_escaped(const uint8_t *s, size_t n);
void fail(const char *what);

/* sha256.c */
struct sha256 {
	uint32_t h[8];
	uint32_t bytes_hi, bytes_lo;
	uint8_t block[64];
	uint32_t used;
};
void sha256_start(struct sha256 *s);
void sha256_add(struct sha256 *s, const void *p, size_t n);
void put_sha256(struct sha256 *s);
void put_sha256_of(const void *p, size_t n);

/* smbios.c, fwcfg.c, pvh.c: each reports one channel */
void report_smbios(void);
void report_fw_cfg(int digest_all);
struct start_info;
int report_start_info(const struct start_info *info);
int command_line_has(const struct start_info *info, const char *word);
uint32_t start_info_rsdp(const struct start_info *info);

/* platform.c: what differs between VMMs */
void platform_report(void);
void platform_power_off(void) __attribute__((noreturn));
void platform_reset(void) __attribute__((noreturn));
void platform_triple_fault(void) __attribute__((noreturn));
void platform_halt(void) __attribute__((noreturn));
void platform_enable_power_button(void);
void platform_await_power_button(uint32_t rsdp);

/* acpi.c: the register of a Generic Event Device, 0 if there is none */
uint64_t acpi_event_register(uint32_t rsdp);
void acpi_await_power_button(uint64_t event);

/* paging.c */
volatile uint8_t *map_device(uint64_t address);

#endif
