// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vmcred/vmcred/vm"
)

// DefaultSources are the folders that a `file:` source may be in on a host whose file
// has no `sources:`: those of sops-nix, agenix, NixOps and systemd (systemd.exec(5),
// LoadCredential=), and one of our own.
func DefaultSources() []string {
	return []string{
		"/run/secrets", "/run/secrets.d", "/run/agenix", "/run/agenix.d", "/run/keys",
		"/run/credstore", "/etc/credstore", "/etc/vmcred/secrets",
	}
}

// AllowedSources are the folders that a `file:` source of the host's VMs may be in.
func (h *Host) AllowedSources() []string {
	if h.Sources == nil {
		return DefaultSources()
	}
	return slices.Clone(h.Sources)
}

// Allows reports whether a `file:` source of one of the host's VMs (those of SystemDir)
// may be at path. Only the words of the path count, no link is followed: the VM's file is
// root's, and this is against a slip, or what somebody else wrote into it.
func (h *Host) Allows(path string) bool {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return false
	}
	return slices.ContainsFunc(h.AllowedSources(), func(dir string) bool {
		return strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/") && path != "/"
	})
}

// CheckSources says which of a VM's `file:` sources its unit must not get. It is for the
// host's VMs: see IsHosts.
func (h *Host) CheckSources(spec *vm.Spec) vm.Problems {
	var problems vm.Problems
	for _, c := range spec.Credentials {
		if c.Source.Kind != vm.SourceFile || h.Allows(c.Source.Path) {
			continue
		}
		problems = append(problems, vm.Problem{
			Pos: c.Pos, Field: join(join("credentials", c.Host), "file"),
			Message: fmt.Sprintf("%s is in none of the folders that a VM's unit may have files from", c.Source.Path),
			Hint:    h.sourcesHint(c.Source.Path),
		})
	}
	return problems
}

// sourcesHint says which folders there are, and what to write for one more.
func (h *Host) sourcesHint(path string) string {
	file := h.File
	if file == "" {
		file = filepath.Join(filepath.Dir(SystemDir), hostName+".yaml")
	}
	dirs := h.AllowedSources()
	if len(dirs) == 0 {
		return "sources: in " + file + " allows none"
	}
	hint := "they are " + strings.Join(dirs, ", ")
	if h.Sources == nil {
		return hint + "; sources: in " + file + " names others instead"
	}
	return fmt.Sprintf("they are %s; add %s to sources: in %s", strings.Join(dirs, ", "), filepath.Dir(path), file)
}

// IsHosts reports whether a VM's file is one of the host's, those of SystemDir: what runs
// in units.
func IsHosts(file string) bool {
	abs, err := filepath.Abs(file)
	return err == nil && filepath.Dir(abs) == SystemDir
}
