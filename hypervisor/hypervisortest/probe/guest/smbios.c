/* SPDX-License-Identifier: Apache-2.0 */
/* Walks the SMBIOS table (DMTF DSP0134) as a guest's kernel does, and reports
 * every structure and every string of type 11. */
#include "probe.h"

struct table {
	const uint8_t *at;
	uint32_t bytes;
	uint32_t structures; /* 0: the entry point does not say */
};

static uint32_t u16(const uint8_t *p) { return p[0] | p[1] << 8; }
static uint32_t u32(const uint8_t *p) { return u16(p) | u16(p + 2) << 16; }

static int sum_is_zero(const uint8_t *p, uint32_t n)
{
	uint8_t sum = 0;
	while (n--)
		sum += *p++;
	return sum == 0;
}

static void put_entry(const char *anchor, const uint8_t *at, const struct table *t)
{
	put("probe: smbios anchor=");
	put(anchor);
	put(" at=0x");
	put_hex((uint32_t)at, 8);
	put(" table=0x");
	put_hex((uint32_t)t->at, 8);
	put(" bytes=");
	put_dec(t->bytes);
	put(" structures=");
	put_dec(t->structures);
	put("\n");
}

/* The entry point lies on a 16-byte boundary of the firmware's segment. */
static int find(struct table *t)
{
	for (uint32_t a = 0xf0000; a < 0x100000; a += 16) {
		const uint8_t *p = (const uint8_t *)a;
		if (!memcmp(p, "_SM3_", 5) && sum_is_zero(p, p[6])) {
			t->at = (const uint8_t *)u32(p + 0x10);
			t->bytes = u32(p + 0x0c);
			t->structures = 0;
			put_entry("_SM3_", p, t);
			return 1;
		}
		if (!memcmp(p, "_SM_", 4) && sum_is_zero(p, p[5])) {
			t->at = (const uint8_t *)u32(p + 0x18);
			t->bytes = u16(p + 0x16);
			t->structures = u16(p + 0x1c);
			put_entry("_SM_", p, t);
			return 1;
		}
	}
	put("probe: smbios none\n");
	return 0;
}

static void report_string(uint32_t handle, uint32_t index, const uint8_t *s, uint32_t n)
{
	put("probe: string handle=0x");
	put_hex(handle, 4);
	put(" index=");
	put_dec(index);
	put(" bytes=");
	put_dec(n);
	put_sha256_of(s, n);
	put("\n");
}

static void report_structure(const uint8_t *p, uint32_t bytes, uint32_t strings)
{
	uint32_t handle = u16(p + 2);
	put("probe: structure type=");
	put_dec(p[0]);
	put(" handle=0x");
	put_hex(handle, 4);
	put(" bytes=");
	put_dec(bytes);
	if (p[0] == 11 && p[1] > 4) {
		put(" count=");
		put_dec(p[4]);
	}
	put(" strings=");
	put_dec(strings);
	put("\n");
	if (p[0] != 11)
		return;
	const uint8_t *s = p + p[1];
	for (uint32_t i = 1; i <= strings; i++) {
		uint32_t n = strlen((const char *)s);
		report_string(handle, i, s, n);
		s += n + 1;
	}
}

/* Returns the size of the structure at p, 0 if it does not end before end. */
static uint32_t measure(const uint8_t *p, const uint8_t *end, uint32_t *strings)
{
	if (end - p < 4 || p[1] < 4 || end - p < p[1])
		return 0;
	*strings = 0;
	const uint8_t *s = p + p[1];
	if (end - s < 2)
		return 0;
	if (!s[0] && !s[1])
		return p[1] + 2;
	while (s < end && *s) {
		while (s < end && *s)
			s++;
		if (s >= end)
			return 0;
		s++;
		++*strings;
	}
	return s < end ? s + 1 - p : 0;
}

/* The table, once it was found. */
static struct table t;

void report_smbios(void)
{
	if (!find(&t))
		return;
	const uint8_t *p = t.at, *end = t.at + t.bytes;
	uint32_t n = 0;
	while (p < end) {
		uint32_t strings = 0, bytes = measure(p, end, &strings);
		if (!bytes) {
			fail("smbios-structure-cut");
			return;
		}
		report_structure(p, bytes, strings);
		n++;
		if (p[0] == 127 && !t.structures)
			return;
		p += bytes;
		if (t.structures && n == t.structures)
			break;
	}
	if (t.structures && (p != end || n != t.structures))
		fail("smbios-length-and-count-disagree");
}

/* Visits the strings of one structure that begin before its limit; one that goes
 * on behind it ends there. */
static int each_of(const uint8_t *p, uint32_t bytes, uint32_t limit,
		   int (*visit)(const uint8_t *s, uint32_t n, void *to), void *to)
{
	const uint8_t *s = p + p[1], *end = p + (bytes < limit ? bytes : limit);
	while (s < end && *s) {
		const uint8_t *start = s;
		while (s < end && *s)
			s++;
		if (visit(start, s - start, to))
			return 1;
		s++;
	}
	return 0;
}

/* Visits the strings of all type 11 structures that were reported, and of each
 * structure the first bytes only. Returns 1 if a visit did, which ends it. */
int smbios_each_string(uint32_t limit, int (*visit)(const uint8_t *s, uint32_t n, void *to), void *to)
{
	const uint8_t *end = t.at + t.bytes;
	uint32_t n = 0, strings, bytes;
	for (const uint8_t *p = t.at; p < end && (bytes = measure(p, end, &strings)); p += bytes) {
		if (p[0] == 11 && each_of(p, bytes, limit, visit, to))
			return 1;
		if (++n == t.structures || (p[0] == 127 && !t.structures))
			return 0;
	}
	return 0;
}
