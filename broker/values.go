// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/broker/transfer"
	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/secret"
	"github.com/vmcred/vmcred/store"
	"github.com/vmcred/vmcred/vm"
)

// changed is the reason why a later question of a start is not answered.
var changed = problems{{
	Message: "the values were changed while the unit was starting: some are the old ones already",
	Hint:    "start it again, it gets the new ones", Retry: true,
}}

// read takes all values of a VM that come from the store, of one moment: the first time
// whatever is there, later the same or nothing. The start is locked. The values and the
// list are in the arena.
func (b *Broker) read(ctx context.Context, s *Settings, st *start, spec *vm.Spec, a *secret.Arena) (map[string]*secret.Value, problems) {
	all := fromStore(spec)
	switch {
	case s.Store == nil && s.NoStore != nil:
		return nil, unread(all, s.NoStore)
	case s.Store == nil:
		return nil, problem("", "this host has no store for var: sources", "name its folder in /etc/vmcred/vmcred.yaml: vars: /var/lib/vmcred/vars")
	}
	var refs []store.Ref
	seen := map[store.Ref]bool{}
	for i := range all {
		if ref, _ := store.ParseVar(all[i].Source.Path); !seen[ref] {
			refs, seen[ref] = append(refs, ref), true
		}
	}
	var values map[string]*secret.Value
	var ps problems
	for range tries {
		var again bool
		if values, again, ps = readOnce(ctx, s, st, all, refs, a); !again {
			break
		}
	}
	return values, ps
}

// tries is how often a store is read that is being changed.
const tries = 3

func readOnce(ctx context.Context, s *Settings, st *start, all []vm.Credential, refs []store.Ref, a *secret.Arena) (values map[string]*secret.Value, again bool, ps problems) {
	snap, err := s.Store.Pin(ctx, refs...)
	if err != nil {
		return nil, errors.Is(err, store.ErrChanging), unread(all, err)
	}
	defer snap.Close()
	versions := make(map[string]store.Version, len(refs))
	for _, r := range refs {
		versions[r.Generator] = snap.Version(r)
	}
	if st.given.Versions != nil && !maps.Equal(st.given.Versions, versions) {
		return nil, false, changed
	}
	values, again, ps = open(ctx, snap, all, a)
	if len(ps) > 0 {
		return nil, again, ps
	}
	st.given.Versions = versions
	return values, false, nil
}

// unread is why nothing can be pinned. What is missing is said of each credential.
func unread(all []vm.Credential, err error) problems {
	var none *store.NotFoundError
	if !errors.As(err, &none) {
		return unreadable("", err)
	}
	var ps problems
	for i := range all {
		if ref, _ := store.ParseVar(all[i].Source.Path); ref == none.Ref {
			ps = append(ps, problem(all[i].Host, err.Error(), hintOf(err))...)
		}
	}
	return ps
}

// unreadable is an error of the store, which may pass.
func unreadable(host string, err error) problems {
	ps := problem(host, err.Error(), hintOf(err))
	for _, passing := range []error{
		store.ErrChanging, context.Canceled, context.DeadlineExceeded,
		unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EAGAIN, unix.EIO,
	} {
		ps[0].Retry = ps[0].Retry || errors.Is(err, passing)
	}
	var lock *secret.LockError
	ps[0].Retry = ps[0].Retry || errors.As(err, &lock)
	return ps
}

// open reads every value, and says of each what is wrong with it. again: it was changed
// meanwhile.
func open(ctx context.Context, snap store.Snapshot, all []vm.Credential, a *secret.Arena) (values map[string]*secret.Value, again bool, ps problems) {
	values = make(map[string]*secret.Value, len(all)+1)
	total := 0
	for i := range all {
		c := &all[i]
		ref, file := store.ParseVar(c.Source.Path)
		v, err := snap.Open(ctx, a, ref, file)
		switch {
		case err != nil:
			again = again || errors.Is(err, store.ErrChanging)
			ps = append(ps, unreadable(c.Host, err)...)
			continue
		case v.Len() == 0 && !c.AllowEmpty:
			ps = append(ps, problem(c.Host, "its value, "+c.Source.Path+", is empty", "make it anew, or write allow-empty: true if that is right")...)
			continue
		case v.Len() > credential.MaxValue:
			ps = append(ps, problem(c.Host, fmt.Sprintf("its value has %d bytes, and a guest takes %d", v.Len(), credential.MaxValue), "a guest can fetch a file of that size itself")...)
			continue
		}
		total += v.Len()
		values[c.Host] = v
	}
	if len(ps) == 0 && total > credential.MaxTotal {
		ps = problem("", fmt.Sprintf("the values have %d bytes together, and a guest takes %d", total, credential.MaxTotal), "take some out")
	}
	return values, again, ps
}

// withList adds the transfer list.
func withList(a *secret.Arena, invocation string, values map[string]*secret.Value) error {
	list, err := transfer.Encode(a, invocation, values)
	if err == nil {
		values[credential.TransferList] = list
	}
	return err
}
