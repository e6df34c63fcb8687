// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"context"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/internal/peer"
)

// login is the slice of a person's own processes, whatever users they run as (newuidmap(1));
// empty: they are none's.
func login(p *peer.Peer) string {
	number, ok := strings.CutPrefix(strings.TrimSuffix(p.Slice, ".slice"), "user-")
	if !ok || number == "" || strings.Trim(number, "0123456789") != "" {
		return ""
	}
	return p.Slice
}

// group is with whom a peer shares what it may take: what is in its unit, or of its login.
// Nobody but root makes units, while one user can have many numbers.
func group(p *peer.Peer) string {
	switch slice := login(p); {
	case slice != "":
		return slice
	case p.Unit != "":
		return p.Unit
	}
	return "who is in no unit"
}

// outsider can be no VM's unit: it may ask how the broker is, and that takes little.
func outsider(p *peer.Peer) bool { return p.UID != 0 && (p.Unit == "" || login(p) != "") }

// gate limits what peers take: connections of one group, and requests that are worked on.
type gate struct {
	peers int
	work  chan struct{}

	mu   sync.Mutex
	open map[string]int
}

func newGate(l limits) *gate {
	return &gate{peers: l.peers, work: make(chan struct{}, l.work), open: map[string]int{}}
}

// enter counts a connection of a peer's group; false: there are too many. Root has no limit.
// The caller leaves.
func (g *gate) enter(p *peer.Peer) (leave func(), ok bool) {
	if p.UID == 0 {
		return func() {}, true
	}
	who := group(p)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open[who] >= g.peers {
		return nil, false
	}
	g.open[who]++
	return func() { g.leave(who) }, true
}

func (g *gate) leave(who string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open[who]--; g.open[who] <= 0 {
		delete(g.open, who)
	}
}

// begin waits until there is room to work on a request, in the order of those who wait.
func (g *gate) begin(ctx context.Context) error {
	select {
	case g.work <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (g *gate) end() { <-g.work }

// flood limits how much of what is refused goes on record, and into the journal: neither a
// stranger nor a VM whose hypervisor is taken over must be able to fill the disk.
type flood struct {
	mu  sync.Mutex
	all map[string]*asker
}

type asker struct {
	limit *rate.Limiter
	more  uint64 // that were left out
}

// What an asker can have on record by being refused: at once, and for how long one more.
const (
	strangerBurst = 10
	strangerEvery = time.Minute
	unitBurst     = 2 * credential.MaxFiles // a start can have that many things wrong with it
	unitEvery     = 10 * time.Second
	askersMax     = 4096 // who are remembered
)

func newFlood() *flood { return &flood{all: map[string]*asker{}} }

// stranger is allow for who asks for what is not his.
func (f *flood) stranger(p *peer.Peer) (left uint64, ok bool) {
	return f.allow("stranger "+group(p), 1, rate.Every(strangerEvery), strangerBurst)
}

// unit is allow for n refusals of a VM's own unit.
func (f *flood) unit(name string, n int) (left uint64, ok bool) {
	return f.allow(name, n, rate.Every(unitEvery), unitBurst)
}

// allow reports whether n refusals go on record, and how many before them did not.
func (f *flood) allow(who string, n int, every rate.Limit, burst int) (left uint64, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.all[who]
	if s == nil {
		if len(f.all) >= askersMax {
			clear(f.all)
		}
		s = &asker{limit: rate.NewLimiter(every, burst)}
		f.all[who] = s
	}
	if !s.limit.AllowN(time.Now(), n) {
		s.more += uint64(n)
		return 0, false
	}
	left, s.more = s.more, 0
	return left, true
}
