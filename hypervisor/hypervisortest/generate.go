// SPDX-License-Identifier: Apache-2.0

package hypervisortest

import (
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/vmcred/vmcred/credential"
)

// generator makes up sets. The same seed and number give the same set.
type generator struct {
	*rand.Rand
	names int
	small bool // for a guest that computes slowly: 1,000 sets in a few minutes
}

func newGenerator(seed, set uint64) *generator {
	return &generator{Rand: rand.New(rand.NewPCG(seed, set))}
}

// one in n
func (g *generator) chance(n int) bool { return g.IntN(n) == 0 }

func pick[T any](g *generator, of ...T) T { return of[g.IntN(len(of))] }

// set returns up to 260 items and the version of the guest's systemd.
func (g *generator) set() (items []item, systemd int) {
	systemd = pick(g, credentialsOldest, wholeStructures)
	n := g.count()
	if g.small && n > 60 {
		systemd = wholeStructures // in one structure, an old guest never gets as many
	}
	for range n {
		items = append(items, g.item(n))
	}
	if g.chance(8) {
		items = append(items, item{kind: credential.Static, guest: readyAddress, value: "vsock-stream:2:9999"})
	}
	if g.chance(12) { // something that no guest takes
		items = append(items, g.bad(items))
	}
	g.Shuffle(len(items), func(i, j int) { items[i], items[j] = items[j], items[i] })
	return items, systemd
}

// count is the number of items.
func (g *generator) count() int {
	switch {
	case g.small && g.chance(50):
		return pick(g, 255, 255, 256, 100+g.IntN(156))
	case g.small:
		return pick(g, 1, 3, 3, g.IntN(12), g.IntN(20))
	case g.chance(25):
		return pick(g, 255, 256, 257, 100+g.IntN(160))
	}
	return pick(g, 1, 3, 3, g.IntN(20), g.IntN(20), g.IntN(60))
}

func (g *generator) item(n int) item {
	switch g.IntN(8) {
	case 0:
		return item{kind: credential.Static, guest: g.name(), value: g.value(g.size(n))}
	case 1:
		if g.small {
			return item{kind: credential.OEMString, value: g.smallString()}
		}
		return item{kind: credential.OEMString, value: g.oemString(1 + g.IntN(80))}
	}
	name := g.name()
	return item{kind: credential.Secret, host: "host-" + name[:min(len(name), 200)], guest: name, value: g.value(g.size(n))}
}

// name is a valid name that no other item of the set has.
func (g *generator) name() string {
	g.names++
	s := fmt.Sprintf("N%d", g.names)
	switch g.IntN(10) {
	case 0:
		s += strings.Repeat("L", 255-len(s))
	case 1:
		s += strings.Repeat("F", fwCfgKey-len(fwCfgPrefix)-len(s)) // just short enough for fw_cfg
	case 2:
		s += strings.Repeat("G", fwCfgKey-len(fwCfgPrefix)-len(s)+1)
	case 3:
		if g.small && !g.chance(20) { // or a set of many would never be taken
			return s + pick(g, ",", " ", `"`, `\`, "'", "%", "*", "..", "~", "{}", "#")
		}
		s += pick(g, ",", ",,", " ", `"`, `\`, "'", "%", "=", "$HOME", "a=b", "*", "..", "~", "{}", "#")
	default:
		s += strings.Repeat("_X", g.IntN(8))
	}
	return s
}

// size: most are short, and the limits are met to the byte. Many items stay small.
func (g *generator) size(n int) int {
	switch {
	case g.small && n > 60:
		return pick(g, 0, 1, 1, 2, g.IntN(8))
	case g.small:
		return pick(g, 0, 1, 2, 3, g.IntN(16), 32, 44, g.IntN(100))
	}
	if n > 60 {
		return pick(g, 0, 1, 1, 32, 44, g.IntN(200))
	}
	switch g.IntN(12) {
	case 0:
		return pick(g, 0, 1, 2, 3)
	case 1:
		return pick(g, 4095, 4096, 4097)
	case 2:
		return g.nearAPage()
	case 3:
		return g.IntN(6000)
	case 4:
		if g.chance(6) {
			return pick(g, 30_000, 48_000, 65_535, 65_536, 200_000)
		}
	}
	return pick(g, 32, 44, 44, 88, g.IntN(300))
}

// nearAPage is a size whose base64 just fits a page of sysfs, or just not.
func (g *generator) nearAPage() int {
	return 3*(pageOfSysfs-7-len(binaryString)-g.IntN(40))/4 - g.IntN(4)
}

func (g *generator) value(n int) string {
	b := make([]byte, n)
	alphabet := pick(g, "", "", ",", "\n", "\x00", "ß€𝄞\u0301", `"'\`, "\x01\x1b\x7f\t\r", "QUJD=", "a,b=c\n")
	for i := range b {
		if alphabet == "" {
			b[i] = byte(g.Uint32())
		} else {
			b[i] = alphabet[i%len(alphabet)]
		}
	}
	if n > 0 && g.chance(4) {
		b[n-1] = '\n'
	}
	return string(b)
}

// oemString is text without a NUL.
func (g *generator) oemString(n int) string {
	if g.chance(20) {
		return pick(g, textString, binaryString) + g.name() + "=" + pick(g, "QUJD", "", "x")
	}
	if g.chance(30) {
		return strings.Repeat("o", pick(g, 4089, 4090, 4096))
	}
	return strings.ReplaceAll(g.value(n), "\x00", "0")
}

// smallString is mostly UTF-8: where strings travel in JSON it must be.
func (g *generator) smallString() string {
	if g.chance(60) {
		return g.oemString(1 + g.IntN(40))
	}
	text := pick(g, "a", ",", "\n", "ß€𝄞\u0301", `"\`, "\x01\x1b\x7f\t\r", "QUJD=", " ", "\u2028<&>", "\xef\xbf\xbd")
	return strings.Repeat(text, 1+g.IntN(3))
}

// bad is an item that makes its set one to refuse.
func (g *generator) bad(others []item) item {
	secret := func(guest, value string) item {
		return item{kind: credential.Secret, host: "bad", guest: guest, value: value}
	}
	switch g.IntN(8) {
	case 0:
		return secret(pick(g, "", ".", "..", "a/b", "a:b", "tab\t", "ü", "\x7f"), "x")
	case 1:
		return secret(strings.Repeat("n", 256), "x")
	case 2:
		return item{kind: credential.OEMString, value: ""}
	case 3:
		return item{kind: credential.OEMString, value: "a\x00b"}
	case 4:
		return secret("huge", g.value(guestBytes+1))
	case 5:
		return secret(strings.Repeat("b", fwCfgKey), g.value(pageOfSysfs)) // too long a string, too long a key
	case 6:
		return item{kind: credential.Static, guest: "a:b", value: "x"}
	}
	if len(others) > 0 && others[0].guest != "" {
		return secret(others[0].guest, "the second of this name")
	}
	return secret("", "x")
}
