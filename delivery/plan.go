// SPDX-License-Identifier: Apache-2.0

package delivery

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/vmcred/vmcred/credential"
)

// Entry is how one item of a set travels.
type Entry struct {
	credential.Meta
	Channel Channel `json:"channel"`
	Struct  int     `json:"struct"`  // index of its SMBIOS structure, -1 on other channels
	Encoded int     `json:"encoded"` // bytes on the channel; for SMBIOS with its NUL, without its share of the structure
	Text    bool    `json:"as_text"` // sent as it is, not as base64, in an SMBIOS string
}

// Limit is how much of a channel a plan uses. A maximum of 0 is none.
type Limit struct {
	Channel  Channel `json:"channel"`
	Items    int     `json:"items"`
	ItemsMax int     `json:"items_max"`
	Bytes    int     `json:"bytes"` // as encoded, everything the channel carries
	BytesMax int     `json:"bytes_max"`
	Needs    string  `json:"needs,omitempty"` // what the guest needs for it
	Why      string  `json:"why,omitempty"`   // whose limit BytesMax is
}

// GuestUse is how much of the guest's credentials directory a plan uses.
type GuestUse struct {
	Systemd  int `json:"systemd"`
	Bytes    int `json:"bytes"`
	BytesMax int `json:"bytes_max"`
	Pages    int `json:"pages"` // each value that is not empty takes whole pages
	PagesMax int `json:"pages_max"`
}

// Plan says for each item of a set how it reaches the guest.
type Plan struct {
	Entries []Entry         `json:"entries"` // as a set orders them
	Structs int             `json:"structs"` // SMBIOS structures
	Used    map[Channel]int `json:"-"`       // bytes on each channel, as in Limits
	Limits  []Limit         `json:"limits"`  // every channel on offer, SMBIOS first
	Guest   GuestUse        `json:"guest"`
}

// Make plans how the items reach the guest: by SMBIOS, and what does not fit
// there by the other channels in the order of the offers. The same arguments
// give the same plan. If anything cannot be carried there is no plan, and the
// refusals name everything that does not fit.
func Make(offers []Offer, g Guest, metas []credential.Meta) (Plan, []Refusal) {
	if g.Systemd == 0 {
		g.Systemd = OldestSystemd
	}
	metas = slices.Clone(metas)
	slices.SortStableFunc(metas, credential.Compare)
	use, refusals := checkGuest(g, metas)
	if len(refusals) > 0 {
		return Plan{}, refusals
	}
	// Small ones first fills SMBIOS with more items, which can help where the
	// order of names fails: an item too many for the next channel is refused.
	for _, order := range []func(a, b credential.Meta) int{byName, byLength} {
		p := newPacker(offers, g, metas, order)
		again := p.pack()
		if len(again) == 0 {
			plan := p.plan()
			plan.Guest = use
			return plan, nil
		}
		if refusals == nil {
			refusals = again
		}
	}
	return Plan{}, refusals
}

func byName(credential.Meta, credential.Meta) int { return 0 } // as they are

func byLength(a, b credential.Meta) int { return cmp.Compare(smbiosLen(a), smbiosLen(b)) }

// packer places the items of one set.
type packer struct {
	entries  []Entry
	order    []int // indices of entries, in the order they are placed
	channels []channel
}

// channel keeps account of one offer.
type channel interface {
	offer() *Offer
	// never says why the channel cannot carry the item, however empty it is.
	never(m credential.Meta) *reason
	// place fills the entry, or says what is used up.
	place(e *Entry) *reason
	limit() Limit
}

// reason is why one channel does not carry an item.
type reason struct{ text, hint string }

func newPacker(offers []Offer, g Guest, metas []credential.Meta, order func(a, b credential.Meta) int) *packer {
	p := &packer{entries: make([]Entry, len(metas))}
	for i, m := range metas {
		p.entries[i] = Entry{Meta: m, Struct: -1}
	}
	var notify *credential.Meta
	if i := slices.IndexFunc(metas, isNotify); i >= 0 {
		notify = &metas[i]
	}
	seen := map[Channel]bool{}
	for _, o := range offers {
		if seen[o.Channel] {
			continue
		}
		seen[o.Channel] = true
		if o.Channel == SMBIOS {
			p.channels = slices.Insert(p.channels, 0, channel(newSMBIOS(o, g, notify)))
		} else {
			p.channels = append(p.channels, &fwCfg{o: o})
		}
	}
	p.order = p.placing(metas, order)
	return p
}

func isNotify(m credential.Meta) bool {
	return m.Guest == credential.NotifySocket && m.Kind != credential.OEMString
}

// placing returns the order in which items choose their channel: OEM strings as
// they came, then what only one channel can carry, then the rest. The address
// for READY goes last, so that it is the last string of the table.
func (p *packer) placing(metas []credential.Meta, order func(a, b credential.Meta) int) []int {
	rank := make([]int, len(metas))
	for i, m := range metas {
		able := 0
		for _, c := range p.channels {
			if c.never(m) == nil {
				able++
			}
		}
		switch {
		case isNotify(m):
			rank[i] = 3
		case m.Kind == credential.OEMString:
			rank[i] = 0
		case able <= 1:
			rank[i] = 1
		default:
			rank[i] = 2
		}
	}
	idx := make([]int, len(metas))
	for i := range idx {
		idx[i] = i
	}
	slices.SortStableFunc(idx, func(a, b int) int {
		if c := cmp.Compare(rank[a], rank[b]); c != 0 || rank[a] == 0 {
			return c
		}
		return order(metas[a], metas[b])
	})
	return idx
}

func (p *packer) pack() []Refusal {
	var refusals []Refusal
	for _, i := range p.order {
		if r := p.place(&p.entries[i]); r != nil {
			refusals = append(refusals, *r)
		}
	}
	return refusals
}

func (p *packer) place(e *Entry) *Refusal {
	var texts, hints []string
	for _, c := range p.channels {
		why := c.never(e.Meta)
		if why == nil {
			why = c.place(e)
		}
		if why == nil {
			e.Channel = c.offer().Channel
			return nil
		}
		texts = append(texts, fmt.Sprintf("%s: %s", c.offer().Channel, why.text))
		if why.hint != "" && !slices.Contains(hints, why.hint) {
			hints = append(hints, why.hint)
		}
	}
	if len(p.channels) == 0 {
		texts = []string{"no channel leads into this VM"}
		hints = []string{"use a hypervisor or a machine type that has one"}
	}
	what := fmt.Sprintf("%d bytes", e.Len)
	if e.Kind == credential.OEMString {
		what = "an OEM string of " + what
	}
	r := refuse(e.Meta, fmt.Sprintf("%s cannot be delivered (%s)", what, strings.Join(texts, "; ")), strings.Join(hints, ", or "))
	return &r
}

func (p *packer) plan() Plan {
	plan := Plan{Entries: p.entries, Used: map[Channel]int{}}
	for _, c := range p.channels {
		l := c.limit()
		plan.Limits = append(plan.Limits, l)
		plan.Used[l.Channel] = l.Bytes
		if s, ok := c.(*smbios); ok {
			plan.Structs = len(s.structs)
		}
	}
	return plan
}
