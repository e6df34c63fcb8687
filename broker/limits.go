// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/internal/peer"
)

// gate limits what peers take: connections of one user, and requests that are worked on.
type gate struct {
	peers int
	work  chan struct{}

	mu   sync.Mutex
	open map[uint32]int
}

func newGate(l limits) *gate {
	return &gate{peers: l.peers, work: make(chan struct{}, l.work), open: map[uint32]int{}}
}

// enter counts a connection of a user; false: there are too many. The caller leaves.
func (g *gate) enter(uid uint32) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if uid != 0 && g.open[uid] >= g.peers {
		return false
	}
	g.open[uid]++
	return true
}

func (g *gate) leave(uid uint32) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open[uid]--; g.open[uid] <= 0 {
		delete(g.open, uid)
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

// stranger is allow for who asks for what is not his: a user, or, of root's, a unit, so that
// one that is started again and again does not hide the reasons of the others.
func (f *flood) stranger(p *peer.Peer) (left uint64, ok bool) {
	who := fmt.Sprint("user ", p.UID)
	if p.UID == 0 {
		who = "root's " + p.Unit
	}
	return f.allow(who, 1, rate.Every(strangerEvery), strangerBurst)
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
