// SPDX-License-Identifier: Apache-2.0

package credential

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/vmcred/vmcred/secret"
)

// The prefixes by which a guest's systemd knows a credential among the OEM
// strings: the name, a "=" and the value follow. See systemd.system-credentials(7).
const (
	textPrefix   = "io.systemd.credential:"
	binaryPrefix = "io.systemd.credential.binary:"
	anyPrefix    = "io.systemd.credential"
)

// Type11Strings is the number of strings that one structure can hold: its
// count is one byte (SMBIOS specification, "OEM Strings (Type 11)").
const Type11Strings = 255

const type11Header = 5

// Type11Len returns the bytes of a type 11 structure that holds strings of
// these lengths, each without its NUL. It is what the guest's kernel shows as
// /sys/firmware/dmi/entries/11-N/raw: the header, each string with its NUL and
// the NUL that ends the structure.
func Type11Len(stringLens []int) int {
	n := type11Header + 1
	for _, l := range stringLens {
		n += l + 1
	}
	return n
}

// Type11 returns one raw SMBIOS structure of type 11 with these strings, both
// terminating NULs included. It refuses what would lose a string in the guest:
// none or more than 255 strings, an empty one (it ends the structure) and one
// with a NUL inside (it ends the string). The values stay their owner's.
func Type11(handle uint16, strs []secret.Rope) (secret.Rope, error) {
	if len(strs) == 0 || len(strs) > Type11Strings {
		return nil, fmt.Errorf("a type 11 structure holds 1 to %d strings, not %d", Type11Strings, len(strs))
	}
	pieces := 2
	for _, s := range strs {
		pieces += len(s) + 1
	}
	header := [type11Header]byte{11, type11Header, byte(handle), byte(handle >> 8), byte(len(strs))}
	out := make(secret.Rope, 0, pieces)
	out = append(out, secret.Piece{Text: string(header[:])})
	for i, s := range strs {
		if err := checkString(s); err != nil {
			return nil, fmt.Errorf("string %d: %w", i+1, err)
		}
		out = append(out, s...)
		out = append(out, secret.Piece{Text: "\x00"})
	}
	return append(out, secret.Piece{Text: "\x00"}), nil
}

var (
	errEmptyString = errors.New("an SMBIOS string cannot be empty")
	errNUL         = errors.New("an SMBIOS string cannot hold a NUL")
)

func checkString(s secret.Rope) error {
	if s.Len() == 0 {
		return errEmptyString
	}
	for _, p := range s {
		if p.Secret == nil {
			if strings.IndexByte(p.Text, 0) >= 0 {
				return errNUL
			}
			continue
		}
		err := p.Secret.Use(func(b []byte) error {
			for _, c := range b { // byte by byte: bytes.IndexByte leaves them in vector registers
				if c == 0 {
					return errNUL
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// BinaryString returns the OEM string that carries a value which is base64
// already (Arena.Base64). The value stays its owner's.
func BinaryString(guest string, base64Value *secret.Value) secret.Rope {
	r := secret.Rope{{Text: binaryPrefix + guest + "="}}
	if base64Value != nil && base64Value.Len() > 0 {
		r = append(r, secret.Piece{Secret: base64Value})
	}
	return r
}

// BinaryStringLen returns the length of BinaryString for a value of n bytes
// before base64.
func BinaryStringLen(guest string, n int) int {
	return len(binaryPrefix) + len(guest) + 1 + base64.StdEncoding.EncodedLen(n)
}

// TextString returns the OEM string that carries a value as it is. The value
// must not be secret and must not hold a NUL.
func TextString(guest, value string) string {
	return textPrefix + guest + "=" + value
}

// TextStringLen returns the length of TextString for a value of n bytes.
func TextStringLen(guest string, n int) int {
	return len(textPrefix) + len(guest) + 1 + n
}

// CheckSMBIOSName returns an error if an OEM string cannot carry a credential
// of this guest name: the name in it ends at the first "=".
func CheckSMBIOSName(guest string) error {
	if err := CheckName(guest); err != nil {
		return err
	}
	if strings.Contains(guest, "=") {
		return &NameError{guest, `holds a "=", which ends the name in an SMBIOS string`, "SMBIOS"}
	}
	return nil
}

// parseOEMString reads an OEM string as a guest's systemd does. ok is false if
// the string is no credential; the error says why systemd would not take one
// that is meant to be.
func parseOEMString(s string) (name string, ok bool, err error) {
	rest, text := strings.CutPrefix(s, textPrefix)
	if !text {
		var binary bool
		if rest, binary = strings.CutPrefix(s, binaryPrefix); !binary {
			return "", false, nil
		}
	}
	name, value, found := strings.Cut(rest, "=")
	if !found {
		return "", true, errors.New(`it has no "=" after the credential's name`)
	}
	if err := CheckName(name); err != nil {
		return "", true, err
	}
	if !text && !isBase64(value) {
		return "", true, errors.New("its value is not base64")
	}
	return name, true, nil
}

// isBase64 is as strict as unbase64mem() in systemd's src/basic/hexdecoct.c:
// padded, no bits left over, white space anywhere.
func isBase64(s string) bool {
	s = strings.Map(func(r rune) rune {
		if strings.ContainsRune(" \t\n\r", r) {
			return -1
		}
		return r
	}, s)
	_, err := base64.StdEncoding.Strict().DecodeString(s)
	return err == nil
}
