// SPDX-License-Identifier: Apache-2.0

package hypervisortest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/credential"
)

// edge is a family of sets that grows with n, and has a largest that is taken.
type edge struct {
	name    string
	systemd int
	// items returns the set of size n. All up to the edge are taken, all above refused.
	items func(n int) []item
	most  int // a size that is certainly refused
}

func filled(name string, n int) item {
	return item{kind: credential.Secret, host: "host", guest: name, value: strings.Repeat("v", n)}
}

// edges are those of SMBIOS, of fw_cfg, of names and of the guest. Names of 40
// bytes keep a value off fw_cfg.
func edges() []edge {
	long := strings.Repeat("n", 40)
	one := func(name string) func(int) []item {
		return func(n int) []item { return []item{filled(name, n)} }
	}
	many := func(size int, name func(int) string) func(int) []item {
		return func(n int) []item {
			var out []item
			for i := range n {
				it := filled(name(i), size)
				it.host = fmt.Sprintf("host-%d", i)
				out = append(out, it)
			}
			return out
		}
	}
	oldest := credentialsOldest
	return []edge{
		{"one string, old guest", oldest, one(long), 5000},
		{"one string, new guest", wholeStructures, one(long), 100_000},
		{"one value by any channel, old guest", oldest, one("short"), guestBytes + 2},
		{"one value by any channel, new guest", wholeStructures, one("short"), guestBytes + 2},
		{"an OEM string, old guest", oldest, func(n int) []item {
			return []item{{kind: credential.OEMString, value: strings.Repeat("o", n+1)}}
		}, 5000},
		{"an OEM string, new guest", wholeStructures, func(n int) []item {
			return []item{{kind: credential.OEMString, value: strings.Repeat("o", n+1)}}
		}, 100_000},
		{"the table full of strings", oldest, func(n int) []item {
			var out []item
			for n++; n > 0; n -= 4000 {
				out = append(out, item{kind: credential.OEMString, value: strings.Repeat("o", min(n, 4000))})
			}
			return out
		}, 100_000},
		{"the length of a name", oldest, func(n int) []item { return one(strings.Repeat("n", n+1))(1) }, 300},
		{"the length of a name for fw_cfg", oldest, func(n int) []item { return one(strings.Repeat("n", n+1))(5000) }, 300},
		{"the number of values", oldest, many(1, func(i int) string { return fmt.Sprintf("N%d", i) }), 300},
		{"the number of values with long names", wholeStructures, many(1, func(i int) string {
			return fmt.Sprintf("N%03d%s", i, strings.Repeat("n", 251))
		}), 300},
		{"the number of empty values", oldest, many(0, func(i int) string { return fmt.Sprintf("N%d", i) }), 1100},
		{"the sum of all values", oldest, func(n int) []item {
			return append(many(100_000, func(i int) string { return fmt.Sprintf("N%d", i) })(10), filled("last", n))
		}, 60_000},
	}
}

// testEdges finds the largest set of each family that is taken, sees it arrive
// bit-exact, and the next one refused.
func (s *suite) testEdges(t *testing.T) {
	offers := s.driver.Offers(s.spec(""), s.info)
	for _, e := range edges() {
		t.Run(e.name, func(t *testing.T) {
			taken := func(n int) bool { return refusalOf(e.items(n), e.systemd, offers) == "" }
			if !taken(0) {
				t.Fatalf("the smallest set is refused: %s", refusalOf(e.items(0), e.systemd, offers))
			}
			low, high := 0, e.most // low is taken, high refused
			if taken(high) {
				t.Fatalf("size %d is not refused", high)
			}
			for high-low > 1 {
				if mid := (low + high) / 2; taken(mid) {
					low = mid
				} else {
					high = mid
				}
			}
			t.Logf("size %d is taken, %d is not: %s", low, high, refusalOf(e.items(high), e.systemd, offers))
			if v, why := judge(e.items(high), e.systemd, offers); v == mustTake {
				t.Errorf("size %d is refused, but %s", high, why)
			}
			if v, why := judge(e.items(low), e.systemd, offers); v == mustLeave {
				t.Fatalf("size %d is taken, but %s", low, why)
			}
			s.deliver(t, e.items(low), e.systemd)
		})
	}
}
