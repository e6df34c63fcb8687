// SPDX-License-Identifier: Apache-2.0
// A program in QEMU's place for measuring the runner alone: it takes QEMU's
// arguments, reads each memory file once as QEMU does, speaks as much QMP as a
// start and a stop need, and ends. With no QMP descriptor it ends at once.
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char greeting[] =
	"{\"QMP\":{\"version\":{\"qemu\":{\"micro\":0,\"minor\":2,\"major\":8},\"package\":\"\"},\"capabilities\":[]}}\r\n";

// after returns what follows key in one of the arguments, or null.
static const char *after(int argc, char **argv, const char *option, const char *key)
{
	for (int i = 1; i + 1 < argc; i++) {
		const char *at;
		if (!strcmp(argv[i], option) && (at = strstr(argv[i + 1], key)))
			return at + strlen(key);
	}
	return NULL;
}

static void read_files(int argc, char **argv)
{
	static char buf[1 << 16];
	for (int i = 1; i + 1 < argc; i++) {
		const char *at = strstr(argv[i + 1], "file=/dev/fd/");
		if (!at || (strcmp(argv[i], "-smbios") && strcmp(argv[i], "-fw_cfg")))
			continue;
		int fd = open(at + 5, O_RDONLY);
		while (fd >= 0 && read(fd, buf, sizeof buf) > 0)
			;
		close(fd);
	}
}

static void say(int fd, const char *s)
{
	if (write(fd, s, strlen(s)) < 0)
		exit(1);
}

int main(int argc, char **argv)
{
	char line[4096];
	if (argc > 1 && !strcmp(argv[1], "--version")) {
		puts("QEMU emulator version 8.2.0");
		return 0;
	}
	const char *number = after(argc, argv, "-chardev", "id=qmp,fd=");
	if (!number)
		return 0;
	read_files(argc, argv);
	int fd = atoi(number), stay = after(argc, argv, "-append", "stay") != NULL;
	say(fd, greeting);
	FILE *in = fdopen(fd, "r");
	while (in && fgets(line, sizeof line, in)) {
		const char *id = strstr(line, "\"id\":");
		char answer[128] = "{\"return\":{}}\r\n";
		if (id) {
			int n = strcspn(id + 5, ",}");
			const char *body = strstr(line, "query-status") ? "{\"status\":\"prelaunch\",\"running\":false}" : "{}";
			snprintf(answer, sizeof answer, "{\"return\":%s,\"id\":%.*s}\r\n", body, n, id + 5);
		}
		say(fd, answer);
		int ends = strstr(line, "\"quit\"") || strstr(line, "system_powerdown") || (!stay && strstr(line, "\"cont\""));
		if (ends) {
			say(fd, "{\"timestamp\":{\"seconds\":0,\"microseconds\":0},\"event\":\"SHUTDOWN\","
				"\"data\":{\"guest\":true,\"reason\":\"guest-shutdown\"}}\r\n");
			return 0;
		}
	}
	return 1;
}
