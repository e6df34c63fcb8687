// SPDX-License-Identifier: Apache-2.0

// Command bench measures the runner in interleaved pairs against an empty Go
// program that starts the same stand-in for a hypervisor, and against the way
// it is done by hand in a shell script; and where there is a cloud-hypervisor, a
// real VM that gets its strings by the API against one that gets them by its
// command line. It prints medians, and 95 % intervals
// of the medians of the ratios.
package main

import (
	"flag"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

func main() {
	vmcred := flag.String("vmcred", "build/vmcred", "the program to measure")
	pairs := flag.Int("pairs", 60, "pairs for each comparison")
	flag.Parse()
	if err := run(*vmcred, *pairs); err != nil {
		fmt.Fprintln(os.Stderr, "bench: error:", err)
		os.Exit(1)
	}
}

func run(vmcred string, pairs int) error {
	dir, err := os.MkdirTemp("", "vmcred-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b, err := prepare(dir, vmcred)
	if err != nil {
		return err
	}
	defer os.RemoveAll(b.memory)
	fmt.Printf("%-34s %10s %10s %22s  %s\n", "", "ours", "theirs", "ratio (95 %)", "to reach")
	for _, c := range []struct {
		n                 int
		overEmpty, seedly float64
	}{{3, 2, 5}, {200, 4, 100}} {
		if err := b.against(c.n, pairs, c.overEmpty, c.seedly); err != nil {
			return err
		}
	}
	if err := b.broker(max(pairs, 100)); err != nil {
		return err
	}
	if err := b.cloudHypervisor(max(pairs, 100)); err != nil {
		return err
	}
	return b.sizes()
}

// against measures n credentials against both baselines.
func (b *bench) against(n, pairs int, overEmpty, seedly float64) error {
	ours, err := b.ours(n, "")
	if err != nil {
		return err
	}
	empty := func() *exec.Cmd { return exec.Command(b.empty, b.standIn) }
	a, z, err := interleave(pairs, ours, empty)
	if err != nil {
		return err
	}
	report(fmt.Sprintf("%d credentials, empty program, time", n), a.wall, z.wall, fmt.Sprintf("≤ %g×", overEmpty), false)
	report(fmt.Sprintf("%d credentials, empty program, CPU", n), a.cpu, z.cpu, "", false)
	if a, z, err = interleave(max(pairs/3, 10), ours, b.seeds(n)); err != nil {
		return err
	}
	report(fmt.Sprintf("%d credentials, shell script, CPU", n), a.cpu, z.cpu, fmt.Sprintf("≥ %g× less", seedly), true)
	report(fmt.Sprintf("%d credentials, shell script, time", n), a.wall, z.wall, "", true)
	return nil
}

// sizes prints what the runner weighs while a VM runs, and the program on disk.
func (b *bench) sizes() error {
	for _, n := range []int{3, 200} {
		kib, err := b.resident(n)
		if err != nil {
			return err
		}
		fmt.Printf("resident while the VM runs, %3d credentials: %.1f MB (to reach: ≤ 12)\n", n, float64(kib)*1024/1e6)
	}
	info, err := os.Stat(b.vmcred)
	if err != nil {
		return err
	}
	fmt.Printf("static binary: %.1f MB (to reach: ≤ 12)\n", float64(info.Size())/1e6)
	return nil
}

// times are the seconds of several runs of one command.
type times struct{ wall, cpu []float64 }

func (t *times) add(make func() *exec.Cmd) error {
	cmd := make()
	cmd.Stdout, cmd.Stderr = nil, nil
	from := time.Now()
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", filepath.Base(cmd.Path), err)
	}
	t.wall = append(t.wall, time.Since(from).Seconds())
	u, _ := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	t.cpu = append(t.cpu, float64(u.Utime.Nano()+u.Stime.Nano())/1e9)
	return nil
}

// interleave runs a and b in turn, after a warm-up of each, so that a machine
// whose speed drifts slows both alike.
func interleave(pairs int, a, b func() *exec.Cmd) (ta, tb times, err error) {
	var warm times
	for _, f := range []func() *exec.Cmd{a, b} {
		if err = warm.add(f); err != nil {
			return ta, tb, err
		}
	}
	for range pairs {
		if err = ta.add(a); err != nil {
			return ta, tb, err
		}
		if err = tb.add(b); err != nil {
			return ta, tb, err
		}
	}
	return ta, tb, nil
}

func report(what string, ours, theirs []float64, reach string, inverse bool) {
	ratios := make([]float64, len(ours))
	for i := range ours {
		ratios[i] = ours[i] / theirs[i]
		if inverse {
			ratios[i] = theirs[i] / ours[i]
		}
	}
	slices.Sort(ratios)
	lo, hi := interval(len(ratios))
	word := "×"
	if inverse {
		word = "× less"
	}
	fmt.Printf("%-34s %7.2f ms %7.2f ms %6.2f%s (%.2f–%.2f)  %s\n",
		what, 1e3*median(ours), 1e3*median(theirs), median(ratios), word, ratios[lo], ratios[hi], reach)
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// interval is the 95 % interval of the median of n sorted values, by their
// ranks (normal approximation of the binomial distribution).
func interval(n int) (lo, hi int) {
	half := 1.96 * math.Sqrt(float64(n)) / 2
	lo = max(int(float64(n)/2-half), 0)
	return lo, n - 1 - lo
}
