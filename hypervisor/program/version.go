// SPDX-License-Identifier: Apache-2.0

package program

import (
	"bytes"
	"fmt"
	"strconv"

	"github.com/vmcred/vmcred/hypervisor/console"
)

// Version is a VMM's: major, minor, micro.
type Version [3]int

// String returns "7.2.22".
func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2]) }

// Less says whether v is older than o.
func (v Version) Less(o Version) bool {
	for i := range v {
		if v[i] != o[i] {
			return v[i] < o[i]
		}
	}
	return false
}

// ParseVersion reads two or three numbers of up to four digits behind the prefix;
// what follows them is a distribution's.
func ParseVersion(prefix string, line []byte) (Version, error) {
	rest, ok := bytes.CutPrefix(line, []byte(prefix))
	var v Version
	for i := range v {
		n := 0
		for n < len(rest) && n < 4 && '0' <= rest[n] && rest[n] <= '9' {
			n++
		}
		if n == 0 && i < 2 {
			ok = false
		}
		v[i], _ = strconv.Atoi(string(rest[:n])) // digits only; "" is 0
		if rest = rest[n:]; i == len(v)-1 || !bytes.HasPrefix(rest, []byte(".")) {
			ok = ok && i > 0
			break
		}
		rest = rest[1:]
	}
	if !ok {
		return Version{}, fmt.Errorf("its version reads %s", strconv.QuoteToASCII(console.OneLine(string(line))))
	}
	return v, nil
}
