// SPDX-License-Identifier: Apache-2.0

package secret

import (
	"bufio"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"testing"
)

// gram is how many bytes in a row count as a copy. Eight random bytes do not
// appear by chance, and a hash's leftovers are seldom shorter.
const gram = 8

// needles holds every gram of a value, in every form it is looked for.
type needles struct {
	maybe [1 << 22]bool
	form  map[uint64]string
}

func newNeedles(value []byte) *needles {
	n := &needles{form: map[uint64]string{}}
	n.add("plain", value)
	for skip := range 3 {
		n.add("base64", []byte(base64.StdEncoding.EncodeToString(value[skip:])))
	}
	n.add("hex", []byte(hex.EncodeToString(value)))
	n.add("hex", []byte(strings.ToUpper(hex.EncodeToString(value))))
	for skip := range 4 { // a hash's message words, as a little-endian machine keeps them
		words := append([]byte(nil), value[skip:]...)
		for i := 0; i+4 <= len(words); i += 4 {
			binary.LittleEndian.PutUint32(words[i:], binary.BigEndian.Uint32(words[i:]))
		}
		n.add("swapped words", words[:len(words)/4*4])
	}
	for _, pad := range []byte{0x36, 0x5c} { // HMAC's
		padded := append([]byte(nil), value...)
		for i := range padded {
			padded[i] ^= pad
		}
		n.add("padded", padded)
	}
	return n
}

func (n *needles) add(form string, b []byte) {
	for i := 0; i+gram <= len(b); i++ {
		g := binary.LittleEndian.Uint64(b[i:])
		n.maybe[bucket(g)] = true
		n.form[g] = form
	}
}

func bucket(g uint64) uint64 { return g * 0x9e3779b97f4a7c15 >> 42 }

// enough is how many bytes of a form are no accident: about 64 random bits.
func enough(form string) int {
	switch form {
	case "hex":
		return 2 * gram
	case "base64":
		return gram * 4 / 3
	default:
		return gram
	}
}

// find returns where in b grams lie, by form, counting a run of them once.
func (n *needles) find(b []byte) []string {
	var found []string
	for i := 0; i+gram <= len(b); i++ {
		g := binary.LittleEndian.Uint64(b[i:])
		if g == 0 {
			i += gram - 1 - 1 // most memory is zero; a value is not
			continue
		}
		if !n.maybe[bucket(g)] {
			continue
		}
		form, ok := n.form[g]
		if !ok {
			continue
		}
		run := gram
		for i+run < len(b) && n.form[binary.LittleEndian.Uint64(b[i+run-gram+1:])] == form {
			run++
		}
		if run >= enough(form) {
			found = append(found, form)
		}
		i += run - 1
	}
	return found
}

// region is one line of /proc/PID/maps.
type region struct {
	from, to uint64
	name     string
}

func regions(t *testing.T, pid int) []region {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var all []region
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var r region
		var perms string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &r.from, &r.to, &perms); err != nil {
			t.Fatalf("%q: %v", lines.Text(), err)
		}
		if fields := strings.Fields(lines.Text()); len(fields) > 5 {
			r.name = strings.Join(fields[5:], " ")
		}
		if perms[0] == 'r' {
			all = append(all, r)
		}
	}
	return all
}

// copies searches all readable memory of a process. The pages in own are the
// secret's home and left out.
func (n *needles) copies(t *testing.T, pid int, own map[uint64]bool) []string {
	t.Helper()
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatalf("reading a process of our own: %v", err)
	}
	defer mem.Close()
	var found []string
	var searched uint64
	for _, r := range regions(t, pid) {
		if own[r.from] {
			continue
		}
		b := make([]byte, r.to-r.from)
		got, err := mem.ReadAt(b, int64(r.from))
		if strings.HasPrefix(r.name, "/secretmem") {
			if got > 0 {
				t.Errorf("memfd_secret pages were read through /proc/%d/mem", pid)
			}
			continue
		}
		if err != nil && got == 0 {
			continue // [vvar] and its like
		}
		searched += uint64(got)
		for _, form := range n.find(b[:got]) {
			found = append(found, form+" in "+fmt.Sprintf("%x-%x %s", r.from, r.to, r.name))
		}
	}
	if searched < 1<<20 {
		t.Fatalf("searched %d bytes only", searched)
	}
	return found
}
