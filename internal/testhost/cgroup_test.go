// SPDX-License-Identifier: Apache-2.0

//go:build linux && amd64

package testhost

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// cgroupPrefix and our pid make the name of a container's cgroups.
const cgroupPrefix = "vmcred-testhost-"

// makeCgroups makes a cgroup in each hierarchy that systemd-nspawn works in:
// below ours, so that whoever limits us limits the container, too.
func makeCgroups() ([]string, error) {
	parents, err := ownCgroups()
	if err != nil {
		return nil, err
	}
	var made []string
	for _, p := range parents {
		removeDead(p)
		dir := filepath.Join(p, cgroupPrefix+strconv.Itoa(os.Getpid()))
		if err := os.Mkdir(dir, 0o755); err != nil {
			return nil, errors.Join(err, removeCgroups(made))
		}
		made = append(made, dir)
	}
	return made, nil
}

// ownCgroups are this process's directories in the unified hierarchy and, where
// there is one, in the older one that systemd names its own.
func ownCgroups() ([]string, error) {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var dirs []string
	for line := range strings.Lines(string(mounts)) {
		// id parent dev root mountpoint options … - type source superoptions
		before, after, _ := strings.Cut(strings.TrimSpace(line), " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if len(f) < 5 || len(g) < 3 {
			continue
		}
		key := ""
		switch {
		case g[0] == "cgroup2":
			key = "0::"
		case g[0] == "cgroup" && strings.Contains(g[2], "name=systemd"):
			key = ":name=systemd:"
		default:
			continue
		}
		for entry := range strings.Lines(string(own)) {
			if _, path, ok := strings.Cut(strings.TrimSpace(entry), key); ok {
				rel, _ := strings.CutPrefix(path, strings.TrimSuffix(f[3], "/"))
				dirs = append(dirs, filepath.Join(f[4], rel))
			}
		}
	}
	if len(dirs) == 0 {
		return nil, errors.New("no cgroup of the unified hierarchy is mounted")
	}
	return dirs, nil
}

// removeDead removes what a test that was killed left.
func removeDead(parent string) {
	left, _ := filepath.Glob(filepath.Join(parent, cgroupPrefix+"*"))
	for _, dir := range left {
		pid := strings.TrimPrefix(filepath.Base(dir), cgroupPrefix)
		if _, err := os.Stat("/proc/" + pid); errors.Is(err, fs.ErrNotExist) {
			_ = removeCgroups([]string{dir})
		}
	}
}

// removeCgroups removes cgroups with all below them. One with a process in it
// stays, and is an error.
func removeCgroups(dirs []string) error {
	var errs []error
	for _, dir := range dirs {
		children, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		errs = append(errs, err)
		var below []string
		for _, c := range children {
			if c.IsDir() {
				below = append(below, filepath.Join(dir, c.Name()))
			}
		}
		errs = append(errs, removeCgroups(below))
		if err := os.Remove(dir); err != nil {
			procs, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
			errs = append(errs, fmt.Errorf("%w; processes in it: %q", err, procs))
		}
	}
	return errors.Join(errs...)
}
