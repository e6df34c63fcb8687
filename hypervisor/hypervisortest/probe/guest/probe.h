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

/* number.c */
uint32_t write_dec(uint8_t *to, uint32_t v);
int read_dec(const uint8_t **p, const uint8_t *end, uint32_t *v);
uint32_t unescape(uint8_t *to, const uint8_t *s, uint32_t n);

/* clock.c */
struct patience {
	uint32_t ticks, polls;
	uint8_t second;
};
struct patience patience(uint32_t seconds);
int patience_left(struct patience *p);

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
int smbios_each_string(uint32_t limit, int (*visit)(const uint8_t *s, uint32_t n, void *to), void *to);
void report_fw_cfg(int digest_all);
struct start_info;
int report_start_info(const struct start_info *info);
int command_line_has(const struct start_info *info, const char *word);
const char *command_line_value(const struct start_info *info, const char *key, int nth, uint32_t *n);
uint32_t command_line_number(const struct start_info *info, const char *key, uint32_t otherwise);
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

/* vsock.c */
struct vsock_address {
	uint32_t cid, port;
};
enum ending {
	CLOSED, /* all was sent, and the host closed */
	CUT,    /* the host closed before all was sent */
	REFUSED,
	TIMED_OUT,
};
int vsock_open(void);
enum ending vsock_send(const struct vsock_address *to, const uint8_t *message, uint32_t n, int half_close,
		       uint32_t seconds);

/* ready.c */
void report_ready(const struct start_info *info);

#endif
