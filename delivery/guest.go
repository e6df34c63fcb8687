// SPDX-License-Identifier: Apache-2.0

package delivery

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/vmcred/vmcred/credential"
)

const (
	splitHint = "split it, or keep it on a disk and deliver the key to it"
	fewerHint = "deliver fewer or shorter credentials"
	oemHint   = "remove \"oem-strings:\""
)

// checkGuest refuses what the guest's systemd would not keep, whatever the
// channel. It warns about such a value and skips it, so the guest would start
// without.
func checkGuest(g Guest, metas []credential.Meta) (GuestUse, []Refusal) {
	use := GuestUse{Systemd: g.Systemd, BytesMax: credential.MaxTotal, PagesMax: credential.MaxPages}
	var refusals []Refusal
	if g.Systemd < OldestSystemd && len(metas) > 0 {
		refusals = append(refusals, Refusal{
			Message: fmt.Sprintf("systemd %d in the guest is too old to take credentials from its VM", g.Systemd),
			Hint:    fmt.Sprintf("use a guest with systemd %d or newer", OldestSystemd),
		})
	}
	names := map[string]bool{}
	for _, m := range metas {
		if m.Guest == "" && m.Kind == credential.OEMString {
			continue
		}
		if r := checkItem(m, names[m.Guest]); r != nil {
			refusals = append(refusals, *r)
		}
		names[m.Guest] = true
		use.Bytes += m.Len
		use.Pages += credential.Pages(m.Len)
	}
	if len(refusals) > 0 {
		return use, refusals
	}
	return use, checkTotals(use, len(names), metas)
}

func checkItem(m credential.Meta, taken bool) *Refusal {
	if err := credential.CheckName(m.Guest); err != nil {
		r := refuse(m, err.Error(), (&credential.NameError{}).Hint())
		return &r
	}
	if taken {
		r := refuse(m, "the guest would get two of this name and drop one", "give one of them another guest name with \"as:\"")
		return &r
	}
	if m.Len > credential.MaxValue {
		r := refuse(m, fmt.Sprintf("%d bytes, and a guest's systemd takes %d for one credential", m.Len, credential.MaxValue), splitHint)
		return &r
	}
	return nil
}

func checkTotals(use GuestUse, files int, metas []credential.Meta) []Refusal {
	var out []Refusal
	switch {
	case use.Bytes > use.BytesMax:
		out = append(out, Refusal{
			Message: fmt.Sprintf("%d bytes in all, and a guest's systemd takes %d; the largest: %s", use.Bytes, use.BytesMax, largest(metas)),
			Hint:    fewerHint,
		})
	case use.Pages > use.PagesMax:
		out = append(out, Refusal{
			Message: fmt.Sprintf("%d credentials take %d pages, and the directory in the guest has room for %d: each takes whole pages of %d bytes",
				files, use.Pages, use.PagesMax, credential.PageSize),
			Hint: "deliver fewer credentials: many short values can go into one",
		})
	}
	if files > credential.MaxFiles {
		out = append(out, Refusal{
			Message: fmt.Sprintf("%d credentials, and the directory in the guest has room for %d files", files, credential.MaxFiles),
			Hint:    "deliver fewer credentials: many short values can go into one",
		})
	}
	return out
}

// largest names the three longest values.
func largest(metas []credential.Meta) string {
	sorted := slices.Clone(metas)
	slices.SortStableFunc(sorted, func(a, b credential.Meta) int { return cmp.Compare(b.Len, a.Len) })
	var names []string
	for _, m := range sorted[:min(3, len(sorted))] {
		names = append(names, fmt.Sprintf("%s (%d)", cmp.Or(m.Host, m.Guest, "an OEM string"), m.Len))
	}
	return strings.Join(names, ", ")
}
