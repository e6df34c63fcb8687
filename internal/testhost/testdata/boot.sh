#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs a command in cgroups of its own: boot.sh "CGROUP..." COMMAND...
# It is PID 1 of a namespace, so when it is killed nothing lives on; and what the
# command leaves in /run goes with the namespace of mounts.
set -eu
cgroups=$1
shift
for c in $cgroups; do
	echo $$ >"$c/cgroup.procs"
done
mount -t tmpfs -o mode=0755 tmpfs /run
# As PID 1 the command would complain to the kernel's log.
"$@" || exit $?
