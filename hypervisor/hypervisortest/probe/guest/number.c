/* SPDX-License-Identifier: Apache-2.0 */
/* Numbers and escapes in text. */
#include "probe.h"

/* Writes at most 10 digits and returns how many. */
uint32_t write_dec(uint8_t *to, uint32_t v)
{
	uint8_t digits[10];
	uint32_t n = 0, i = 0;
	do
		digits[n++] = '0' + v % 10;
	while (v /= 10);
	while (i < n) {
		to[i] = digits[n - 1 - i];
		i++;
	}
	return n;
}

/* Reads a number that 32 bits hold, and moves behind it. */
int read_dec(const uint8_t **p, const uint8_t *end, uint32_t *v)
{
	const uint8_t *start = *p;
	uint32_t n = 0;
	for (; *p < end && **p >= '0' && **p <= '9'; ++*p) {
		uint32_t digit = **p - '0';
		if (n > 429496729 || (n == 429496729 && digit > 5))
			return 0;
		n = 10 * n + digit;
	}
	*v = n;
	return *p > start;
}

static int hex_digit(uint8_t c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c |= 0x20;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Undoes %xx and returns the length. A "%" without two digits stays. */
uint32_t unescape(uint8_t *to, const uint8_t *s, uint32_t n)
{
	uint32_t out = 0;
	for (uint32_t i = 0; i < n; i++) {
		to[out] = s[i];
		if (s[i] == '%' && i + 2 < n && hex_digit(s[i + 1]) >= 0 && hex_digit(s[i + 2]) >= 0) {
			to[out] = hex_digit(s[i + 1]) << 4 | hex_digit(s[i + 2]);
			i += 2;
		}
		out++;
	}
	return out;
}
