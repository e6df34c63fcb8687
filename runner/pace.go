// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"context"
	"fmt"
	"time"
)

// A guest that reboots as soon as it runs would fill the log and the host's
// time: after a few such rounds each waits twice as long as the one before.
const (
	shortRound   = 10 * time.Second
	freeRounds   = 3 // short rounds in a row that are followed by no pause
	longestPause = 32 * time.Second
)

// pace counts rounds that were short.
type pace struct{ short int }

// next is how long to wait after a round.
func (p *pace) next(lasted time.Duration) time.Duration {
	if lasted >= shortRound {
		p.short = 0
		return 0
	}
	if p.short++; p.short <= freeRounds {
		return 0
	}
	return min(longestPause, time.Second<<min(p.short-freeRounds-1, 10))
}

// again waits before the next round, and returns false when the VM is to stop.
func (r *run) again(ctx context.Context, pause time.Duration) bool {
	if ctx.Err() != nil {
		return false
	}
	if pause > 0 {
		r.Log.Warn(fmt.Sprintf("the guest reboots again and again: waiting %s", pause), "hint", "its console says why")
		r.Notify("STATUS=waiting before the guest starts anew")
		select {
		case <-ctx.Done():
			return false
		case <-time.After(pause):
		}
	}
	r.Log.Info("the guest rebooted: starting it anew, with the values of now")
	return true
}
