// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"

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
	var shown *shownError
	switch problems := refusedFor(err); {
	case err == nil, errors.Is(err, errRebooted), errors.As(err, &shown):
	case len(problems) > 0:
		a.showProblems(a.stderr, problems)
	default:
		a.showError(err)
	}
	return codeOf(err)
}

func codeOf(err error) int {
	var (
		shown *shownError
		usage *usageError
	)
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errRebooted):
		return exitRebooted
	case errors.As(err, &shown):
		return shown.code
	case len(refusedFor(err)) > 0:
		return exitRefused
	case errors.As(err, &usage):
		return exitUsage
	}
	return exitFailed
}

// refusedFor are the reasons for which a VM was refused; none: it was not.
func refusedFor(err error) vm.Problems {
	var refused *runner.RefusedError
	if errors.As(err, &refused) {
		return refused.Problems
	}
	return nil
}

// logError is exitCode's words for those who asked for a log in JSON.
func logError(log *slog.Logger, err error) error {
	if err == nil || errors.Is(err, errRebooted) {
		return err
	}
	problems := refusedFor(err)
	for _, p := range problems {
		logProblem(log, p)
	}
	if len(problems) == 0 {
		log.Error(err.Error(), "hint", hintOf(err))
	}
	return &shownError{codeOf(err)}
}

func logProblem(log *slog.Logger, p vm.Problem) {
	level := slog.LevelInfo
	switch p.Severity {
	case vm.Error:
		level = slog.LevelError
	case vm.Warning:
		level = slog.LevelWarn
	case vm.Note:
	}
	log.Log(context.Background(), level, p.Error(), "hint", p.Hint, "field", p.Field)
}

func hintOf(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}

func (a *app) showError(err error) {
	st := styleOf(a.stderr, a.getenv)
	fmt.Fprintf(a.stderr, "vmcred: %s%s\n", st.red("error: "), err)
	if hint := hintOf(err); hint != "" {
		fmt.Fprintf(a.stderr, "    %s%s\n", st.bold("hint: "), hint)
	}
}

// showProblems lists problems that keep a VM from starting, and counts them.
func (a *app) showProblems(w *os.File, problems vm.Problems) {
	listProblems(w, styleOf(w, a.getenv), problems)
	if n := len(problems.Fatal()); n > 0 {
		fmt.Fprintf(w, "vmcred: refused, %s: nothing was started\n", count(n, "problem"))
	}
}

// listProblems prints every problem with its hint, worst first.
func listProblems(w io.Writer, st style, problems vm.Problems) {
	for _, p := range worstFirst(problems) {
		showProblem(w, st, p)
	}
}

func worstFirst(problems vm.Problems) vm.Problems {
	return slices.SortedStableFunc(slices.Values(problems), func(a, b vm.Problem) int { return cmp.Compare(a.Severity, b.Severity) })
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
