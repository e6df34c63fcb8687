#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Removes what is left when a test was killed: janitor.sh DIRECTORY CGROUP...
# The test holds the other end of stdin until it has tidied up by itself.
set -u
cat >/dev/null
dir=$1
shift
tries=100
for cgroup; do
	while [ -d "$cgroup" ] && [ $tries -gt 0 ]; do
		find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null || sleep 0.1
		tries=$((tries - 1))
	done
done
rm -rf --one-file-system "$dir"
rmdir "${dir%/*}" 2>/dev/null || true # the test's own, if it is empty
