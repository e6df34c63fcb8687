/* SPDX-License-Identifier: Apache-2.0 */
/* What the VMM hands over at the entry: the command line and the initrd
 * (Xen public/arch-x86/hvm/start_info.h). */
#include "probe.h"

#define MAGIC 0x336ec578

struct start_info {
	uint32_t magic, version, flags, nr_modules;
	uint64_t modlist, cmdline, rsdp;
};

struct module {
	uint64_t at, size, cmdline, reserved;
};

static void report_bytes(const char *what, const void *at, uint32_t n)
{
	put("probe: ");
	put(what);
	put(" at=0x");
	put_hex((uint32_t)at, 8);
	put(" bytes=");
	put_dec(n);
	put_sha256_of(at, n);
	put("\n");
}

int report_start_info(const struct start_info *info)
{
	if (info->magic != MAGIC) {
		fail("pvh-start-info-magic");
		return 0;
	}
	const char *line = (const char *)(uint32_t)info->cmdline;
	report_bytes("cmdline", line, line ? strlen(line) : 0);
	const struct module *m = (const struct module *)(uint32_t)info->modlist;
	for (uint32_t i = 0; i < info->nr_modules; i++) {
		if (m[i].at >> 32 || m[i].size >> 32)
			fail("initrd-above-4GiB");
		else
			report_bytes("initrd", (const void *)(uint32_t)m[i].at, m[i].size);
	}
	return 1;
}

/* Moves on to the next word of the command line and returns its length. */
static uint32_t next_word(const char **p)
{
	uint32_t n = 0;
	while (**p == ' ')
		++*p;
	while ((*p)[n] && (*p)[n] != ' ')
		n++;
	return n;
}

int command_line_has(const struct start_info *info, const char *word)
{
	const char *p = (const char *)(uint32_t)info->cmdline;
	for (uint32_t n; p && (n = next_word(&p)); p += n)
		if (n == strlen(word) && !memcmp(p, word, n))
			return 1;
	return 0;
}

/* Returns what follows the key, with its "=", in the word that has it for the
 * nth time, from 0; else 0. */
const char *command_line_value(const struct start_info *info, const char *key, int nth, uint32_t *bytes)
{
	const char *p = (const char *)(uint32_t)info->cmdline;
	uint32_t k = strlen(key);
	for (uint32_t n; p && (n = next_word(&p)); p += n) {
		if (n >= k && !memcmp(p, key, k) && !nth--) {
			*bytes = n - k;
			return p + k;
		}
	}
	return 0;
}

uint32_t command_line_number(const struct start_info *info, const char *key, uint32_t otherwise)
{
	uint32_t n, v;
	const uint8_t *p = (const uint8_t *)command_line_value(info, key, 0, &n);
	if (!p)
		return otherwise;
	const uint8_t *end = p + n;
	if (read_dec(&p, end, &v) && p == end)
		return v;
	fail("a-number-on-the-command-line");
	return otherwise;
}

/* The ACPI root pointer, 0 if the VMM gives none or it is out of reach. */
uint32_t start_info_rsdp(const struct start_info *info)
{
	return info->magic == MAGIC && info->version >= 1 && !(info->rsdp >> 32) ? (uint32_t)info->rsdp : 0;
}
