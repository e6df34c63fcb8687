/* SPDX-License-Identifier: Apache-2.0 */
/* SHA-256 (FIPS 180-4). */
#include "probe.h"

static const uint32_t k[64] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
	0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
	0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
	0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
	0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
	0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
	0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static inline uint32_t ror(uint32_t v, int n) { return v >> n | v << (32 - n); }

/* One round, without moving its eight variables: the next one has them rotated.
 * Where KVM emulates each instruction, at a microsecond, only their number counts. */
#define ROUND(a, b, c, d, e, f, g, h, i) do { \
	h += (ror(e, 6) ^ ror(e, 11) ^ ror(e, 25)) + (g ^ (e & (f ^ g))) + k[i] + w[i]; \
	d += h; \
	h += (ror(a, 2) ^ ror(a, 13) ^ ror(a, 22)) + ((a & b) | (c & (a | b))); \
} while (0)

static void block(uint32_t *state, const uint8_t *p)
{
	uint32_t w[64];
	const uint32_t *words = (const uint32_t *)p; /* x86 reads at any address */
	for (int i = 0; i < 16; i++)
		w[i] = __builtin_bswap32(words[i]);
	for (int i = 16; i < 64; i++) {
		uint32_t s = w[i - 15], t = w[i - 2];
		w[i] = w[i - 16] + w[i - 7] + (ror(s, 7) ^ ror(s, 18) ^ s >> 3) + (ror(t, 17) ^ ror(t, 19) ^ t >> 10);
	}
	uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
	uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
	for (int i = 0; i < 64; i += 8) {
		ROUND(a, b, c, d, e, f, g, h, i);
		ROUND(h, a, b, c, d, e, f, g, i + 1);
		ROUND(g, h, a, b, c, d, e, f, i + 2);
		ROUND(f, g, h, a, b, c, d, e, i + 3);
		ROUND(e, f, g, h, a, b, c, d, i + 4);
		ROUND(d, e, f, g, h, a, b, c, i + 5);
		ROUND(c, d, e, f, g, h, a, b, i + 6);
		ROUND(b, c, d, e, f, g, h, a, i + 7);
	}
	state[0] += a, state[1] += b, state[2] += c, state[3] += d;
	state[4] += e, state[5] += f, state[6] += g, state[7] += h;
}

void sha256_start(struct sha256 *s)
{
	static const uint32_t first[8] = {
		0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
	};
	memset(s, 0, sizeof *s);
	memcpy(s->h, first, sizeof first);
}

void sha256_add(struct sha256 *s, const void *from, size_t n)
{
	const uint8_t *p = from;
	if (s->bytes_lo + n < s->bytes_lo)
		s->bytes_hi++;
	s->bytes_lo += n;
	while (n) {
		if (!s->used && n >= 64) {
			block(s->h, p);
			p += 64;
			n -= 64;
			continue;
		}
		size_t part = 64 - s->used < n ? 64 - s->used : n;
		memcpy(s->block + s->used, p, part);
		s->used += part;
		p += part;
		n -= part;
		if (s->used == 64) {
			block(s->h, s->block);
			s->used = 0;
		}
	}
}

void put_sha256(struct sha256 *s)
{
	uint32_t bits[2] = {s->bytes_hi << 3 | s->bytes_lo >> 29, s->bytes_lo << 3};
	s->block[s->used++] = 0x80;
	if (s->used > 56) {
		memset(s->block + s->used, 0, 64 - s->used);
		block(s->h, s->block);
		s->used = 0;
	}
	memset(s->block + s->used, 0, 64 - s->used);
	for (int i = 0; i < 8; i++)
		s->block[56 + i] = bits[i / 4] >> (24 - 8 * (i % 4));
	block(s->h, s->block);
	put(" sha256=");
	for (int i = 0; i < 8; i++)
		put_hex(s->h[i], 8);
}

void put_sha256_of(const void *p, size_t n)
{
	struct sha256 s;
	sha256_start(&s);
	sha256_add(&s, p, n);
	put_sha256(&s);
}
