#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Stands in for a hypervisor: it says that it runs and ends with its standard input.
echo running
read -r _ || true
