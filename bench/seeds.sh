#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# How it is done by hand today, kept as it is to be measured against: values
# through pipes into variables, the environment and the hypervisor's command line.
#   seeds.sh HYPERVISOR STATIC NAME...
set -eou pipefail
hypervisor=$1 STATIC_BASE=$2
shift 2
echo "Loading runtime credentials for OEM string injection"
RUNTIME_OEM_STRINGS=""
for name in "$@"; do
	if [ -f "$CREDENTIALS_DIRECTORY/$name" ]; then
		# shellcheck disable=SC2002 # this is how it is done
		CRED_VALUE=$(cat "$CREDENTIALS_DIRECTORY/$name" | tr -d '\n')
		upper=$(echo "$name" | tr 'a-z-' 'A-Z_')
		echo "Loaded $name: ${#CRED_VALUE} bytes"
		if [ -n "$RUNTIME_OEM_STRINGS" ]; then
			RUNTIME_OEM_STRINGS="$RUNTIME_OEM_STRINGS,io.systemd.credential:$upper=$CRED_VALUE"
		else
			RUNTIME_OEM_STRINGS="io.systemd.credential:$upper=$CRED_VALUE"
		fi
	fi
done
if [ -n "$RUNTIME_OEM_STRINGS" ]; then
	if echo "$STATIC_BASE" | grep -q 'oem_strings=\['; then
		STATIC_OEM=$(echo "$STATIC_BASE" | sed -n 's/.*oem_strings=\[\([^]]*\)\].*/\1/p')
		export MICROVM_PLATFORM_OPS="oem_strings=[$STATIC_OEM,$RUNTIME_OEM_STRINGS]"
	else
		export MICROVM_PLATFORM_OPS="oem_strings=[$RUNTIME_OEM_STRINGS],$STATIC_BASE"
	fi
fi
exec "$hypervisor" --platform "$MICROVM_PLATFORM_OPS"
