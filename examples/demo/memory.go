// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vmcred/vmcred/leak"
)

// countCopies counts the secrets, in any form, in the memory of vmcred, where
// none may be left, and of QEMU, which holds the guest's memory.
func countCopies(ctx context.Context, s *leak.Search, runner int) error {
	if os.Geteuid() != 0 {
		fmt.Println("copies in memory: not counted, which takes root")
		return nil
	}
	qemu, err := onlyChild(runner)
	if err != nil {
		return err
	}
	fmt.Println("copies in memory, of all secrets in any form:")
	ours, err := s.Memory(ctx, runner)
	if err != nil {
		return err
	}
	fmt.Printf("  vmcred, process %d: %d\n", runner, ours.Total())
	theirs, err := s.Memory(ctx, qemu)
	if err != nil {
		return err
	}
	fmt.Printf("  QEMU, process %d, which holds the guest's memory and its SMBIOS table: %d\n", qemu, theirs.Total())
	if n := ours.Total(); n != 0 {
		return fmt.Errorf("vmcred has %d copies left in its memory", n)
	}
	return nil
}

// onlyChild returns the one process that pid has started.
func onlyChild(pid int) (int, error) {
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return 0, err
	}
	var children []string
	for _, list := range lists {
		b, err := os.ReadFile(list)
		if err != nil {
			return 0, err
		}
		children = append(children, strings.Fields(string(b))...)
	}
	if len(children) != 1 {
		return 0, fmt.Errorf("process %d has %d children, not one", pid, len(children))
	}
	return strconv.Atoi(children[0])
}
