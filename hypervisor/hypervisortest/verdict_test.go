// SPDX-License-Identifier: Apache-2.0

package hypervisortest

import (
	"strings"
	"testing"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/delivery"
)

func TestJudge(t *testing.T) {
	offers := []delivery.Offer{
		{Channel: delivery.SMBIOS, TotalMax: 60_000, StructMax: 4096, Empty: true, Raw: true},
		{Channel: delivery.FwCfg, Items: 100, Empty: true},
	}
	secret := func(name string, n int) item { return filled(name, n) }
	static := func(v string) item { return item{kind: credential.Static, guest: "S", value: v} }
	raw := func(v string) item { return item{kind: credential.OEMString, value: v} }
	long := strings.Repeat("n", 40)
	cases := map[string]struct {
		items   []item
		systemd int
		want    verdict
	}{
		"nothing":                       {nil, 252, mustTake},
		"one":                           {[]item{secret("A", 44)}, 252, mustTake},
		"empty":                         {[]item{secret("A", 0)}, 252, mustTake},
		"only fw_cfg has room":          {[]item{secret("A", 100_000)}, 252, mustTake},
		"= goes by fw_cfg":              {[]item{secret("A=B", 4)}, 252, mustTake},
		"= and a long name":             {[]item{secret(long+"=", 4)}, 252, mustLeave},
		"a page, no channel":            {[]item{secret(long, 4000)}, 252, mustLeave},
		"a page, new guest":             {[]item{secret(long, 4000)}, 257, mustTake},
		"text fits, base64 would not":   {[]item{{kind: credential.Static, guest: long, value: strings.Repeat("v", 3900)}}, 252, either},
		"two names":                     {[]item{secret("A", 1), secret("A", 1)}, 252, mustLeave},
		"no name":                       {[]item{secret("", 1)}, 252, mustLeave},
		"a slash":                       {[]item{secret("a/b", 1)}, 252, mustLeave},
		"256 bytes of name":             {[]item{secret(strings.Repeat("n", 256), 1)}, 252, mustLeave},
		"255 bytes of name":             {[]item{secret(strings.Repeat("n", 255), 1)}, 252, mustTake},
		"1 MiB":                         {[]item{secret("A", 1<<20)}, 252, mustTake},
		"1 MiB and a byte":              {[]item{secret("A", 1<<20+1)}, 252, mustLeave},
		"1 MiB in two":                  {[]item{secret("A", 1<<19), secret("B", 1<<19)}, 252, mustTake},
		"1 MiB and a byte in two":       {[]item{secret("A", 1<<19), secret("B", 1<<19+1)}, 252, mustLeave},
		"empty OEM string":              {[]item{raw("")}, 252, mustLeave},
		"NUL in an OEM string":          {[]item{raw("a\x00b")}, 252, mustLeave},
		"an OEM string":                 {[]item{raw("a,b\n")}, 252, mustTake},
		"an OEM string of a page":       {[]item{raw(strings.Repeat("o", 4089))}, 252, mustTake},
		"an OEM string of too much":     {[]item{raw(strings.Repeat("o", 4090))}, 252, mustLeave},
		"an OEM string that is one":     {[]item{raw("io.systemd.credential:A=b")}, 252, either},
		"an OEM string that is another": {[]item{secret("A", 1), raw("io.systemd.credential:A=b")}, 252, mustLeave},
		"NUL in a static value":         {[]item{static("a\x00b")}, 252, mustTake},
		"the table more than half full": {[]item{raw(strings.Repeat("o", 31_000))}, 257, either},
	}
	for name, c := range cases {
		if got, why := judge(c.items, c.systemd, offers); got != c.want {
			t.Errorf("%s: %d (%s), want %d", name, got, why, c.want)
		}
	}
}
