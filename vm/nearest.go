// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"slices"
	"strings"

	"github.com/agnivade/levenshtein"
)

// Nearest returns the one of known that a person who wrote word probably
// meant, for hints, or "" when none is close: at most a third of the letters
// differ, case and the difference between "-", "_" and "." left aside.
func Nearest(word string, known []string) string {
	fold := strings.NewReplacer("_", "-", ".", "-")
	w := fold.Replace(strings.ToLower(word))
	best, bestDist := "", max(1, len([]rune(w))/3)+1
	sorted := slices.Clone(known)
	slices.Sort(sorted)
	for _, k := range sorted {
		if k == word {
			continue
		}
		d := levenshtein.ComputeDistance(w, fold.Replace(strings.ToLower(k)))
		if d < bestDist && d < len([]rune(k)) {
			best, bestDist = k, d
		}
	}
	return best
}
