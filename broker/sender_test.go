// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/internal/peer"
)

// A process has by now the number of the one that connected, and so looks like it where the
// kernel knows a peer by its number alone. Who has the socket asks, and is somebody else.
func TestANumberThatIsUsedAgainAsksNothing(t *testing.T) {
	f := setUp(t)
	of := f.o.Peer
	f.o.Peer = func(c *net.UnixConn) (*peer.Peer, error) {
		p, err := of(c)
		if err == nil {
			p.PID = os.Getppid()
		}
		return p, err
	}
	f.start()
	got, err := f.take("test-vm")
	want := fmt.Sprintf("process %d asks on a connection of process %d", os.Getpid(), os.Getppid())
	if len(got) > 0 || err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%d values, %v, want %q", len(got), err, want)
	}
	if n := len(f.log.said()); n > 0 {
		t.Errorf("%d records of nothing", n)
	}
}
