#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# How a VM is commonly given its secrets without vmcred: the control of the leak
# tests. It must be found in the command line and in the environment.
set -euo pipefail

strings=
for file in "$CREDENTIALS_DIRECTORY"/*; do
	name=$(basename "$file" | tr 'a-z-' 'A-Z_')
	value=$(tr -d '\n' <"$file")
	strings+="${strings:+,}io.systemd.credential:$name=$value"
done
export MICROVM_PLATFORM_OPS="oem_strings=[$strings]"
exec "$VMM" --cpus boot=1 --platform "$MICROVM_PLATFORM_OPS"
