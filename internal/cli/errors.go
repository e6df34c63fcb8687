// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/vmcred/vmcred/runner"
	"github.com/vmcred/vmcred/vm"
)

// errRebooted ends vmcred run in a unit when the guest reboots.
var errRebooted = errors.New("the guest rebooted")

// shownError has been shown already; only its exit code is left to say.
type shownError struct{ code int }

func (e *shownError) Error() string { return fmt.Sprintf("exit status %d", e.code) }

// exitCode shows an error to the user, with its hint, and returns the code for it.
func (a *app) exitCode(err error) int {
	var (
		shown   *shownError
		refused *runner.RefusedError
		list    vm.Problems
		failed  *runner.FailedError
	)
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errRebooted):
		return exitRebooted
	case errors.As(err, &shown):
		return shown.code
	case errors.As(err, &refused):
		a.showProblems(a.stderr, refused.Problems)
		return exitRefused
	case errors.As(err, &list):
		a.showProblems(a.stderr, list)
		return exitRefused
	case errors.As(err, &failed):
		a.showError(err)
		return exitFailed
	case isUsage(err):
		a.showError(err)
		return exitUsage
	}
	a.showError(err)
	return exitFailed
}

// isUsage also knows cobra's own errors, which have no type.
func isUsage(err error) bool {
	var u *usageError
	return errors.As(err, &u) || strings.HasPrefix(err.Error(), "unknown command") ||
		strings.HasPrefix(err.Error(), "unknown flag") || strings.HasPrefix(err.Error(), "invalid argument")
}

func (a *app) showError(err error) {
	st := styleOf(a.stderr, a.getenv)
	fmt.Fprintf(a.stderr, "vmcred: %s%s\n", st.red("error: "), err)
	var h interface{ Hint() string }
	if errors.As(err, &h) && h.Hint() != "" {
		fmt.Fprintf(a.stderr, "%s%s\n", st.bold("hint: "), h.Hint())
	}
}

// showProblems lists problems that keep a VM from starting, and counts them.
func (a *app) showProblems(w *os.File, problems vm.Problems) {
	a.listProblems(w, problems)
	if n := len(problems.Fatal()); n > 0 {
		fmt.Fprintf(w, "vmcred: refused, %s: nothing was started\n", count(n, "problem"))
	}
}

// listProblems prints every problem with its hint, worst first.
func (a *app) listProblems(w *os.File, problems vm.Problems) {
	st := styleOf(w, a.getenv)
	for _, sev := range []vm.Severity{vm.Error, vm.Warning, vm.Note} {
		for _, p := range problems {
			if p.Severity == sev {
				showProblem(w, st, p)
			}
		}
	}
}

func showProblem(w io.Writer, st style, p vm.Problem) {
	label := st.yellow(p.Severity.String() + ": ")
	if p.Severity == vm.Error {
		label = st.red("error: ")
	}
	fmt.Fprintf(w, "%s%s\n", label, p.Error())
	if p.Hint != "" {
		fmt.Fprintf(w, "    %s%s\n", st.bold("hint: "), p.Hint)
	}
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
