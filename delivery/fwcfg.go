// SPDX-License-Identifier: Apache-2.0

package delivery

import (
	"errors"
	"fmt"

	"github.com/vmcred/vmcred/credential"
)

// fwCfg carries each value as it is, an item each.
type fwCfg struct {
	o            Offer
	items, bytes int
}

func (f *fwCfg) offer() *Offer { return &f.o }

func (f *fwCfg) limit() Limit {
	return Limit{
		Channel: f.o.Channel, Items: f.items, ItemsMax: f.o.Items,
		Bytes: f.bytes, BytesMax: f.o.TotalMax, Needs: f.o.Needs, Why: f.o.Why,
	}
}

func (f *fwCfg) never(m credential.Meta) *reason {
	if m.Kind == credential.OEMString {
		return &reason{"carries no OEM strings", oemHint}
	}
	if _, err := credential.FwCfgName(m.Guest); err != nil {
		return &reason{nameReason(err), nameHint(m, credential.FwCfgNameMax)}
	}
	if why := neverCommon(f.o, m); why != nil {
		return why
	}
	if f.o.TotalMax > 0 && m.Len > f.o.TotalMax {
		return &reason{fmt.Sprintf("takes %d bytes and has room for %d%s", m.Len, f.o.TotalMax, whose(f.o)), splitHint}
	}
	return nil
}

func (f *fwCfg) place(e *Entry) *reason {
	if f.o.Items > 0 && f.items >= f.o.Items {
		return &reason{fmt.Sprintf("%d of %d items are taken", f.items, f.o.Items), fewerHint}
	}
	if f.o.TotalMax > 0 && f.bytes+e.Len > f.o.TotalMax {
		return &reason{
			fmt.Sprintf("%d bytes, and %d of %d are left%s", e.Len, f.o.TotalMax-f.bytes, f.o.TotalMax, whose(f.o)),
			fewerHint,
		}
	}
	f.items++
	f.bytes += e.Len
	e.Encoded = e.Len
	return nil
}

// neverCommon checks the limits that all channels have.
func neverCommon(o Offer, m credential.Meta) *reason {
	switch {
	case o.NameMax > 0 && len(m.Guest) > o.NameMax:
		return &reason{fmt.Sprintf("the guest name has %d characters and %d is the most", len(m.Guest), o.NameMax), nameHint(m, o.NameMax)}
	case m.Len == 0 && !o.Empty:
		return &reason{"does not carry an empty value", "put something into it, or do not declare it"}
	case o.ItemMax > 0 && m.Len > o.ItemMax:
		return &reason{fmt.Sprintf("takes %d bytes for one value", o.ItemMax), splitHint}
	}
	return nil
}

// nameReason says what is wrong with a name, which the refusal has named already.
func nameReason(err error) string {
	var ne *credential.NameError
	if errors.As(err, &ne) {
		return "the guest name " + ne.Reason
	}
	return err.Error()
}

func nameHint(m credential.Meta, most int) string {
	if len(m.Guest) > most {
		return fmt.Sprintf("shorten the guest name to %d characters with \"as:\"", most)
	}
	return "choose another guest name with \"as:\""
}
