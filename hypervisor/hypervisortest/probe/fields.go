// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// fields takes "key=value" words off the front of a line, in a fixed order.
// Each value has exactly one spelling. The first error sticks.
type fields struct {
	rest string
	err  error
}

func (f *fields) word() string {
	if f.err != nil {
		return ""
	}
	var w string
	var more bool
	w, f.rest, more = strings.Cut(f.rest, " ")
	if w == "" || more && f.rest == "" {
		f.err = fmt.Errorf("an empty word")
	}
	return w
}

func (f *fields) value(key string) string {
	w := f.word()
	v, ok := strings.CutPrefix(w, key+"=")
	if f.err == nil && !ok {
		f.err = fmt.Errorf("%q where %s= belongs", w, key)
	}
	return v
}

func (f *fields) choice(key string, of ...string) string {
	v := f.value(key)
	if f.err == nil && !slices.Contains(of, v) {
		f.err = fmt.Errorf("%s=%q", key, v)
	}
	return v
}

func (f *fields) dec(key string, limit uint64) uint32 {
	v := f.value(key)
	n, err := strconv.ParseUint(v, 10, 32)
	if f.err == nil && (err != nil || n > limit || strconv.FormatUint(n, 10) != v) {
		f.err = fmt.Errorf("%s=%q is no number up to %d", key, v, limit)
	}
	return uint32(n)
}

func (f *fields) hex32(key string) uint32 { return uint32(f.hexadecimal(key, 8)) }
func (f *fields) hex16(key string) uint16 { return uint16(f.hexadecimal(key, 4)) }

func (f *fields) hexadecimal(key string, digits int) uint64 {
	v := f.value(key)
	n, err := strconv.ParseUint(strings.TrimPrefix(v, "0x"), 16, 64)
	if f.err == nil && (err != nil || fmt.Sprintf("0x%0*x", digits, n) != v || len(v) != 2+digits) {
		f.err = fmt.Errorf("%s=%q is no 0x and %d digits", key, v, digits)
	}
	return n
}

func (f *fields) digest() Digest {
	var d Digest
	v := f.value("sha256")
	b, err := hex.DecodeString(v)
	if f.err == nil && (err != nil || len(b) != len(d) || hex.EncodeToString(b) != v) {
		f.err = fmt.Errorf("sha256=%q", v)
		return d
	}
	copy(d[:], b)
	return d
}

func (f *fields) memory() Memory {
	return Memory{At: f.hex32("at"), Bytes: f.dec("bytes", 1<<32-1), SHA256: f.digest()}
}

// escaped undoes the guest's put_escaped: %xx for anything but plain visible ASCII.
func (f *fields) escaped(key string) string {
	v := f.value(key)
	var out []byte
	for i := 0; i < len(v); i++ {
		if v[i] != '%' {
			out = append(out, v[i])
			continue
		}
		if i+3 > len(v) {
			break
		}
		b, err := hex.DecodeString(v[i+1 : i+3])
		if err != nil {
			break
		}
		out = append(out, b[0])
		i += 2
	}
	if f.err == nil && escape(string(out)) != v {
		f.err = fmt.Errorf("%s=%q is not escaped as the guest does", key, v)
	}
	return string(out)
}

func escape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if c := s[i]; c > 0x20 && c < 0x7f && c != '%' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02x", c)
		}
	}
	return b.String()
}
