// SPDX-License-Identifier: Apache-2.0

package check

import (
	"fmt"
	"math"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/vmcred/vmcred/vm"
)

// statics finds values that look like secrets where none belong. It never
// shows them.
func (c *checker) statics() {
	const hint = "move it to credentials:, with a file or a unit's LoadCredential= as its source"
	for _, s := range c.spec.Static {
		if why := secretLike(s.Name, s.Value); why != "" {
			c.add(vm.Warning, s.Pos, "static."+s.Name, hint, "this looks like a secret: %s", why)
		}
	}
	for i, s := range c.spec.OEMStrings {
		name, value, ok := oemCredential(s)
		if !ok {
			value = s
		}
		if why := secretLike(name, value); why != "" {
			c.add(vm.Warning, vm.Pos{File: c.spec.File}, fmt.Sprintf("oem-strings[%d]", i), hint, "this looks like a secret: %s", why)
		}
	}
}

// cmdline finds credentials on the kernel's command line, which everyone in the
// guest can read, and everyone on the host in the VMM's arguments.
func (c *checker) cmdline() {
	for _, word := range strings.Fields(c.spec.Boot.Cmdline) {
		key, value, _ := strings.Cut(strings.Trim(word, `"`), "=")
		if key != "systemd.set_credential" && key != "systemd.set_credential_binary" {
			continue
		}
		name, _, _ := strings.Cut(value, ":")
		c.add(vm.Warning, vm.Pos{File: c.spec.File}, "boot.cmdline", "write it under static: if it is no secret, else under credentials:",
			"the credential %s is on the kernel's command line, where everyone can read it", name)
	}
}

// pattern is compiled when a name or value is first looked at: most runs of the
// program look at none.
func pattern(expr string) func(string) bool {
	compiled := sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })
	return func(s string) bool { return compiled().MatchString(s) }
}

// tokens are the beginnings of values that are secret whatever they are called.
var tokens = pattern(`^(AGE-SECRET-KEY-|gh[pousr]_|github_pat_|glpat-|xox[abeprs]-|sk[-_](live|test|ant|proj)|` +
	`(AKIA|ASIA)[A-Z0-9]{16}$|AIza[A-Za-z0-9_-]{35}|eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.|hv[sb]\.|npm_|pypi-|dop_v1_|SG\.)`)

var (
	privateKey = pattern(`-----BEGIN [A-Z ]*PRIVATE KEY`)
	hash       = pattern(`^\$(1|2[aby]?|5|6|y|7|argon2[a-z]*)\$`)
	// tells are words in a name; publics are words that take it back.
	tells   = pattern(`(?i)(^|[-_.])(pass|passwd|password|passphrase|pwd|secret|secrets|token|apikey|key|privkey|credential|credentials)([-_.]|$)`)
	publics = pattern(`(?i)(^|[-_.])(public|pub|id|ids|file|path|dir|name|ttl|url|uri|endpoint|type|length|size|policy|expiry|count|keys?map|authorized|enabled?|commit|rev|revision|hash|sha\d*|digest|checksum|fingerprint|uuid)([-_.]|$)`)
	// tame is what a setting looks like: a number, a path, a public key …
	tame    = pattern(`^([0-9.]+[a-zA-Z]{0,3}|true|false|yes|no|on|off|/.*|ssh-[a-z0-9-]+ .*|ecdsa-[a-z0-9-]+ .*|age1[a-z0-9]+|sha(256|512)[:-].*)$`)
	hexLong = pattern(`^[0-9a-fA-F]{32,}$`)
	word64  = pattern(`^[A-Za-z0-9+/_-]{20,}={0,2}$`)
)

// secretLike says in a few words why a value that should be public looks like a
// secret, or "". The words hold nothing of the value.
func secretLike(name, value string) string {
	public := publics(name)
	v := strings.TrimSpace(value)
	switch {
	case privateKey(v):
		return "it is a private key"
	case tokens(v):
		return "it begins as an access token does"
	case hash(v):
		return "it is the hash of a password"
	case urlPassword(v):
		return "it is an address with a password in it"
	case v == "" || tame(v) || public:
		return ""
	case tells(name):
		return "its name says so"
	case hexLong(v) && entropy(v) > 3:
		return "it is a long random number"
	case word64(v) && mixed(v) && entropy(v) > 3.6:
		return "it is a long random word"
	}
	return ""
}

func urlPassword(v string) bool {
	if !strings.Contains(v, "://") {
		return false
	}
	u, err := url.Parse(v)
	if err != nil || u.User == nil {
		return false
	}
	_, has := u.User.Password()
	return has
}

// mixed is true for small and capital letters with digits among them.
func mixed(v string) bool {
	return strings.ContainsAny(v, "0123456789") && strings.ToLower(v) != v && strings.ToUpper(v) != v
}

// entropy is Shannon's, in bits a character: 4 for random hexadecimal digits,
// around 4.7 for 32 random bytes in base64, less for words.
func entropy(v string) float64 {
	counts := map[rune]int{}
	for _, r := range v {
		counts[r]++
	}
	n, e := float64(utf8.RuneCountInString(v)), 0.0
	for _, k := range counts {
		p := float64(k) / n
		e -= p * math.Log2(p)
	}
	return e
}
