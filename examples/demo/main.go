// SPDX-License-Identifier: Apache-2.0

// Command demo runs the main job on this machine and watches it: a real VM
// with real systemd receives three secrets, the guest says what it got, and
// the running system is searched for each of them.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	vmcred := flag.String("vmcred", "build/vmcred", "the program to show")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *vmcred); err != nil {
		fmt.Fprintln(os.Stderr, "demo: error:", err)
		os.Exit(1)
	}
}

// step is one part of the demo; its time is shown at the end.
type step struct {
	title string
	do    func(context.Context, *demo) error
	took  time.Duration
}

func run(ctx context.Context, vmcred string) (err error) {
	path, err := filepath.Abs(vmcred)
	if err != nil {
		return err
	}
	d := &demo{vmcred: path, began: time.Now()}
	defer func() {
		if cerr := d.cleanUp(); err == nil {
			err = cerr
		}
	}()
	steps := []*step{
		{title: "a small guest with Debian's own systemd", do: buildGuest},
		{title: "three secrets, in a credentials directory in memory", do: makeSecrets},
		{title: "vmcred plan test-vm", do: plan},
		{title: "vmcred run test-vm", do: start},
		{title: "what the guest says, and what the host says", do: compare},
		{title: "search the running system for each secret", do: search},
		{title: "power off", do: powerOff},
	}
	for i, s := range steps {
		fmt.Printf("\n== %d. %s\n", i+1, s.title)
		from := time.Now()
		if err := s.do(ctx, d); err != nil {
			return fmt.Errorf("%s: %w", s.title, err)
		}
		s.took = time.Since(from)
	}
	if err := d.cleanUp(); err != nil {
		return err
	}
	fmt.Printf("\n== done, and nothing left behind\n")
	for i, s := range steps {
		fmt.Printf("%5.1f s  %d. %s\n", s.took.Seconds(), i+1, s.title)
	}
	fmt.Printf("%5.1f s  in all\n", time.Since(d.began).Seconds())
	return nil
}
