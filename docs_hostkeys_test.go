// SPDX-License-Identifier: Apache-2.0

package vmcred_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/config"
)

// hostFile is where the host's file is, as the first line of its blocks has it.
const hostFile = "/etc/vmcred/vmcred.yaml"

// isHostFile tells a block with the host's file from one with a VM's.
func (b block) isHostFile() bool { return b.lines[0] == "# "+hostFile }

func TestHostKeysAreDocumented(t *testing.T) {
	_, problems := config.ParseHost(hostFile, []byte("version: 1\n"+strange+": 1\n"))
	known, ok := strings.CutPrefix(problems[0].Hint, "the keys here are ")
	if !ok {
		t.Fatal(problems)
	}
	keys := slices.DeleteFunc(strings.Split(known, ", "), func(k string) bool {
		_, problems := config.ParseHost(hostFile, []byte("version: 1\n"+k+": 1\n"))
		return slices.ContainsFunc(strings.Split(problems.Error(), "\n"), func(s string) bool { return strings.Contains(s, "is not read yet") })
	})
	page := readPage(t, "docs/host-file.md")
	var told, sources []string
	for _, row := range page.table("") {
		if len(row) == 4 {
			told = append(told, strings.Trim(row[0], "`"))
		}
	}
	for _, row := range page.table("Sources") {
		for _, m := range codeSpan.FindAllStringSubmatch(row[0], -1) {
			sources = append(sources, m[1])
		}
	}
	slices.Sort(told)
	if !slices.Equal(told, keys) {
		t.Errorf("docs/host-file.md has the keys %q, the decoder %q", told, keys)
	}
	if !slices.Equal(sources, config.DefaultSources()) {
		t.Errorf("docs/host-file.md has the default folders %q, which are %q", sources, config.DefaultSources())
	}
}
