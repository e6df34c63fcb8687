// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"slices"
	"strings"

	"github.com/agnivade/levenshtein"
)

// Nearest returns the one of known that a person who wrote word probably
// meant, for hints, or "" when none is close: at most a third of the letters
// differ, case and the difference between "-", "_" and "." left aside. Letters
// that only changed places count as one that differs.
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
		folded := fold.Replace(strings.ToLower(k))
		d := levenshtein.ComputeDistance(w, folded)
		if d == 2 && letters(w) == letters(folded) {
			d = 1
		}
		if d < bestDist && d < len([]rune(k)) {
			best, bestDist = k, d
		}
	}
	return best
}

// letters are a word's own, sorted.
func letters(word string) string {
	r := []rune(word)
	slices.Sort(r)
	return string(r)
}
