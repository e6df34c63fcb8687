// SPDX-License-Identifier: Apache-2.0

package hypervisortest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vmcred/vmcred/delivery"
	"github.com/vmcred/vmcred/hypervisor/hypervisortest/probe"
)

// tally is what became of the random sets.
type tally struct{ exact, refused, strings, files atomic.Int64 }

// testRandom: each set arrives bit-exact, or is refused before anything starts.
func (s *suite) testRandom(t *testing.T) {
	sets := number(t, "VMCRED_SETS", 1000)
	if testing.Short() {
		sets = number(t, "VMCRED_SETS", 50)
	}
	seed := number(t, "VMCRED_SEED", rand.Uint64()>>1)
	from, to := uint64(0), sets
	if only := number(t, "VMCRED_SET", sets); only < sets {
		from, to = only, only+1
	}
	t.Logf("%d sets; to have the same ones: VMCRED_SETS=%d VMCRED_SEED=%d", to-from, sets, seed)
	var total tally
	next := make(chan uint64)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for n := range next {
				t.Run(fmt.Sprintf("set %d", n), func(t *testing.T) { s.randomSet(t, seed, n, &total) })
			}
		})
	}
	for n := from; n < to; n++ {
		next <- n
	}
	close(next)
	wg.Wait()
	t.Logf("%d sets arrived bit-exact (%d OEM strings, %d fw_cfg files), %d were refused before start",
		total.exact.Load(), total.strings.Load(), total.files.Load(), total.refused.Load())
	if to-from >= 50 && (total.exact.Load() == 0 || total.refused.Load() == 0) {
		t.Error("the sets were all of one kind, which proves little")
	}
}

func (s *suite) randomSet(t *testing.T, seed, n uint64, total *tally) {
	g := newGenerator(seed, n)
	g.small = s.SlowGuest
	items, systemd := g.set()
	again := fmt.Sprintf("VMCRED_SEED=%d VMCRED_SET=%d, %d items for systemd %d", seed, n, len(items), systemd)
	spec := s.spec("")
	offers := s.driver.Offers(spec, s.info)
	want, why := judge(items, systemd, offers)
	if refusal := refusalOf(items, systemd, offers); refusal != "" {
		if want == mustTake {
			t.Errorf("%s: refused (%s), but %s", again, refusal, why)
		}
		total.refused.Add(1)
		return
	}
	if want == mustLeave {
		t.Errorf("%s: not refused, but %s", again, why)
		return
	}
	r := s.deliver(t, items, systemd)
	if t.Failed() {
		t.Log(again)
	}
	total.exact.Add(1)
	for _, st := range r.OEM() {
		total.strings.Add(int64(len(st.Strings)))
	}
	total.files.Add(int64(len(newFound(r).files)))
}

// deliver starts a VM with these items and compares what it reports.
func (s *suite) deliver(t *testing.T, items []item, systemd int) *probe.Report {
	t.Helper()
	l, g := s.launchOf(t, items, "", systemd)
	s.start(t, l, g)
	g.finish(t)
	r := g.report(t)
	for _, fault := range compare(items, systemd, s.offers(), r) {
		t.Error(fault)
	}
	return r
}

// refusalOf returns why our code refuses a set; nothing has started then.
func refusalOf(items []item, systemd int, offers []delivery.Offer) string {
	set, err := newSet(items)
	if err != nil {
		return err.Error()
	}
	defer set.Close()
	if _, refusals := delivery.Make(offers, delivery.Guest{Systemd: systemd}, set.Metas()); len(refusals) > 0 {
		return refusals[0].Error()
	}
	return ""
}

func number(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil {
		t.Fatalf("%s=%q is no number", name, v)
	}
	return n
}
