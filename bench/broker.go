// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmcred/vmcred/audit"
	"github.com/vmcred/vmcred/broker"
	"github.com/vmcred/vmcred/broker/client"
	"github.com/vmcred/vmcred/internal/peer"
	"github.com/vmcred/vmcred/secret"
	"github.com/vmcred/vmcred/store/folder"
	"github.com/vmcred/vmcred/vm"
)

// values are how many a VM of the broker's has.
const values = 5

// instant is a log that is as fast as none.
type instant struct{}

func (instant) Append(context.Context, ...audit.Entry) error { return nil }

// counted counts the batches of a log: each is one sync.
type counted struct {
	*audit.Log
	batches atomic.Int64
}

// brokerBench is a broker of this process, with its sockets: one for each VM.
type brokerBench struct {
	dir     string
	sockets []string
	log     *counted
	starts  sync.Map // a unit's invocation
	stop    func()
}

// newBroker starts a broker for n VMs; recorder is nil for a log on this disk.
func newBroker(dir string, n int, recorder broker.Recorder) (*brokerBench, error) {
	b := &brokerBench{dir: dir, log: &counted{}}
	for _, d := range []string{"vms", "log", "vars"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return nil, err
		}
	}
	logDir, err := os.Open(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	if recorder == nil {
		b.log.Log = audit.New(logDir, "audit.log", audit.Options{Host: "bench", Head: func(audit.Head) { b.log.batches.Add(1) }})
		recorder = b.log
	}
	for i := range n {
		if err := b.vm(i); err != nil {
			return nil, err
		}
	}
	vars, err := folder.Open(filepath.Join(dir, "vars"), os.Geteuid())
	if err != nil {
		return nil, err
	}
	server, err := broker.New(broker.Options{
		VMs: filepath.Join(dir, "vms"), State: filepath.Join(dir, "state"), Version: "bench",
		Settings: func() (*broker.Settings, error) {
			return &broker.Settings{Store: vars, Log: recorder, LogPath: "audit.log", CheckSources: func(*vm.Spec) vm.Problems { return nil }}, nil
		},
		Peer: b.asUnit, Invocation: b.invocation,
		User: func(string) (uint32, error) { return uint32(os.Geteuid()), nil }, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	b.stop = func() { cancel(); all.Wait(); _ = server.Close(); _ = logDir.Close() }
	for i := range n {
		path := filepath.Join(dir, vmName(i))
		l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
		if err != nil {
			b.stop()
			return nil, err
		}
		b.sockets = append(b.sockets, path)
		all.Go(func() { _ = server.ServeRunners(ctx, l) })
	}
	return b, nil
}

func vmName(i int) string { return fmt.Sprintf("vm-%d", i) }

// vm writes a VM's file and its values.
func (b *brokerBench) vm(i int) error {
	text := "version: 1\nhypervisor: qemu\nboot: {kernel: /k}\nunit: " + vmName(i) + ".service\ncredentials:\n"
	gen := filepath.Join(b.dir, "vars", "gen-"+vmName(i))
	if err := os.MkdirAll(gen, 0o700); err != nil {
		return err
	}
	for v := range values {
		text += fmt.Sprintf("  host-%d: {var: gen-%s/v%d}\n", v, vmName(i), v)
		if err := os.WriteFile(fmt.Sprintf("%s/v%d", gen, v), []byte("0123456789012345678901234567890123456789abc="), 0o400); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(b.dir, "vms", vmName(i)+".yaml"), []byte(text), 0o600)
}

// invocation is a unit's present start: the one that asked last.
func (b *brokerBench) invocation(unit string) (string, error) {
	id, ok := b.starts.Load(unit)
	if !ok {
		return "", os.ErrNotExist
	}
	return id.(string), nil
}

// asUnit: who connects to a VM's socket is its unit, and each time it is a start of its own.
func (b *brokerBench) asUnit(c *net.UnixConn) (*peer.Peer, error) {
	p, err := peer.Of(c)
	if err != nil {
		return nil, err
	}
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	p.Unit, p.Invocation = filepath.Base(c.LocalAddr().String())+".service", hex.EncodeToString(id[:])
	b.starts.Store(p.Unit, p.Invocation)
	return p, nil
}

// take is one start of a VM.
func (b *brokerBench) take(i int) error {
	a := secret.NewSmallArena()
	defer a.Close()
	_, err := client.New(client.Options{Socket: b.sockets[i], UID: uint32(os.Geteuid())}).Take(context.Background(), vmName(i), a)
	return err
}

// broker measures what a start waits for the broker, and how many records it writes.
func (b *bench) broker(pairs int) error {
	if err := b.syncShare(pairs); err != nil {
		return err
	}
	for _, clients := range []int{1, 10, 100} {
		if err := b.throughput(clients, 2*time.Second); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) syncShare(pairs int) error {
	onDisk, err := newBroker(filepath.Join(b.dir, "broker-real"), 1, nil)
	if err != nil {
		return err
	}
	defer onDisk.stop()
	quick, err := newBroker(filepath.Join(b.dir, "broker-quick"), 1, instant{})
	if err != nil {
		return err
	}
	defer quick.stop()
	var ours, theirs []float64
	for range pairs + 5 {
		for _, side := range []struct {
			b  *brokerBench
			to *[]float64
		}{{onDisk, &ours}, {quick, &theirs}} {
			begin := time.Now()
			if err := side.b.take(0); err != nil {
				return err
			}
			*side.to = append(*side.to, time.Since(begin).Seconds())
		}
	}
	ours, theirs = ours[5:], theirs[5:] // the first ones read files for the first time
	report(fmt.Sprintf("broker, %d values, without a log, time", values), ours, theirs, "", false)
	o, t := median(ours), median(theirs)
	fmt.Printf("%-34s %9.2fms of which the log and its sync are %.0f %%\n", "broker, one start", o*1e3, 100*(o-t)/o)
	return nil
}

// throughput has clients ask as fast as they can.
func (b *bench) throughput(clients int, d time.Duration) error {
	s, err := newBroker(filepath.Join(b.dir, fmt.Sprintf("broker-%d", clients)), clients, nil)
	if err != nil {
		return err
	}
	defer s.stop()
	var starts atomic.Int64
	errs := make(chan error, clients)
	var all sync.WaitGroup
	begin := time.Now()
	for i := range clients {
		all.Go(func() {
			for time.Since(begin) < d {
				if err := s.take(i); err != nil {
					errs <- err
					return
				}
				starts.Add(1)
			}
		})
	}
	all.Wait()
	took := time.Since(begin).Seconds()
	select {
	case err := <-errs:
		return err
	default:
	}
	records := float64(starts.Load() * values)
	fmt.Printf("%-34s %8.0f/s  %.0f starts/s, %.1f records a sync\n", fmt.Sprintf("broker, records, %d clients", clients),
		records/took, float64(starts.Load())/took, records/float64(max(s.log.batches.Load(), 1)))
	return nil
}
