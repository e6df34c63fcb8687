// SPDX-License-Identifier: Apache-2.0

package credential

import "fmt"

const (
	fwCfgPrefix = "opt/io.systemd.credentials/"
	// A fw_cfg file name is 56 bytes with its NUL (QEMU, docs/specs/fw_cfg.rst).
	fwCfgKeyMax = 55
	// FwCfgNameMax is the length of the longest guest name that fits a fw_cfg key.
	FwCfgNameMax = fwCfgKeyMax - len(fwCfgPrefix)
)

// FwCfgName returns the fw_cfg key under which a guest's systemd finds the
// credential: opt/io.systemd.credentials/NAME, 55 bytes at most. A name that
// begins with "." is refused: systemd lists the directory without such names,
// so the value would be lost (import_credentials_qemu() in its
// src/core/import-creds.c).
func FwCfgName(guest string) (string, error) {
	if err := CheckName(guest); err != nil {
		return "", err
	}
	if len(guest) > FwCfgNameMax {
		return "", &NameError{guest, fmt.Sprintf("has %d characters and a fw_cfg key has room for %d", len(guest), FwCfgNameMax), "fw_cfg"}
	}
	if guest[0] == '.' {
		return "", &NameError{guest, `begins with ".", and systemd skips such a name in fw_cfg`, "fw_cfg"}
	}
	return fwCfgPrefix + guest, nil
}
