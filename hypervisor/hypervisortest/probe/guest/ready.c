/* SPDX-License-Identifier: Apache-2.0 */
/* Says READY=1 to the host, as systemd's PID 1 does: the address is a system
 * credential, and each message has a connection of its own. */
#include "probe.h"

#define PATIENCE 10 /* seconds for one message */

static const char text[] = "io.systemd.credential:vmm.notify_socket=";
static const char binary[] = "io.systemd.credential.binary:vmm.notify_socket=";
static const char scheme[] = "vsock-stream:";

/* What of the value is kept: a longer one is no address. */
struct value {
	uint8_t bytes[64];
	uint32_t n;
};

struct sender {
	struct vsock_address to;
	int half_close, gave_up;
	uint32_t seconds;
};

static int has_prefix(const uint8_t *s, uint32_t n, const char *prefix)
{
	return n >= strlen(prefix) && !memcmp(s, prefix, strlen(prefix));
}

static int base64_digit(uint8_t c)
{
	if (c >= 'A' && c <= 'Z')
		return c - 'A';
	if (c >= 'a' && c <= 'z')
		return c - 'a' + 26;
	if (c >= '0' && c <= '9')
		return c - '0' + 52;
	return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* Leaves the value empty if s is no base64 or too long. */
static void decode_base64(struct value *v, const uint8_t *s, uint32_t n)
{
	uint32_t bits = 0, have = 0;
	if (n % 4)
		return;
	while (n && s[n - 1] == '=')
		n--;
	for (; n; n--, s++) {
		int digit = base64_digit(*s);
		if (digit < 0 || v->n == sizeof v->bytes) {
			v->n = 0;
			return;
		}
		bits = bits << 6 | digit;
		have += 6;
		if (have >= 8) {
			have -= 8;
			v->bytes[v->n++] = bits >> have;
		}
	}
}

/* Takes the value of the first string that sets the credential; later ones lose. */
static int look(const uint8_t *s, uint32_t n, void *to)
{
	struct value *v = to;
	if (has_prefix(s, n, binary)) {
		decode_base64(v, s + sizeof binary - 1, n - (sizeof binary - 1));
		return 1;
	}
	if (!has_prefix(s, n, text))
		return 0;
	n -= sizeof text - 1;
	if (n <= sizeof v->bytes) {
		memcpy(v->bytes, s + sizeof text - 1, n);
		v->n = n;
	}
	return 1;
}

static int parse_address(const struct value *v, struct vsock_address *a)
{
	const uint8_t *p = v->bytes, *end = v->bytes + v->n;
	if (!has_prefix(p, v->n, scheme))
		return 0;
	p += sizeof scheme - 1;
	return read_dec(&p, end, &a->cid) && p < end && *p++ == ':' && read_dec(&p, end, &a->port) && p == end;
}

static void put_message(const uint8_t *message, uint32_t n, enum ending e)
{
	static const char *const names[] = {"closed", "cut", "refused", "timeout"};
	put("probe: message bytes=");
	put_dec(n);
	put(" end=");
	put(names[e]);
	put(" text=");
	put_escaped(message, n);
	put("\n");
}

/* After one that the host let wait too long, no other is tried. */
static void send(struct sender *s, const uint8_t *message, uint32_t n)
{
	if (s->gave_up)
		return;
	enum ending e = vsock_send(&s->to, message, n, s->half_close, s->seconds);
	put_message(message, n, e);
	s->gave_up = e == TIMED_OUT;
}

static void send_text(struct sender *s, const char *message) { send(s, (const uint8_t *)message, strlen(message)); }

static void send_said(struct sender *s, const struct start_info *info)
{
	static uint8_t message[65536];
	uint32_t n;
	const char *words;
	for (int i = 0; (words = command_line_value(info, "say=", i, &n)); i++)
		send(s, message, unescape(message, (const uint8_t *)words, n < sizeof message ? n : sizeof message));
}

static void flood(struct sender *s, uint32_t count)
{
	static const char start[] = "STATUS=flood ";
	uint8_t message[sizeof start + 10];
	memcpy(message, start, sizeof start - 1);
	for (uint32_t i = 1; i <= count && !s->gave_up; i++)
		send(s, message, sizeof start - 1 + write_dec(message + sizeof start - 1, i));
}

void report_ready(const struct start_info *info)
{
	struct value v = {.n = 0};
	struct sender s = {.half_close = command_line_has(info, "halfclose")};
	s.seconds = command_line_number(info, "patience=", PATIENCE);
	if (!smbios_each_string(command_line_number(info, "cut=", 0xffffffff), look, &v)) {
		put("probe: ready none\n");
		return;
	}
	if (!parse_address(&v, &s.to)) {
		put("probe: ready invalid\n");
		return;
	}
	put("probe: ready cid=");
	put_dec(s.to.cid);
	put(" port=");
	put_dec(s.to.port);
	put("\n");
	if (!vsock_open())
		return;
	send_text(&s, "X_SYSTEMD_UNIT_ACTIVE=probe.target");
	send_said(&s, info);
	flood(&s, command_line_number(info, "flood=", 0));
	send_text(&s, "READY=1\nSTATUS=probe is up");
}
