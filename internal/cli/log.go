// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/coreos/go-systemd/v22/journal"
)

// newLog returns the log for a format: "auto" is the journal with fields when
// stderr leads there, else text for people; "json" is one object a line.
func (a *app) newLog(format, name string) (*slog.Logger, error) {
	switch format {
	case "json":
		return slog.New(slog.NewJSONHandler(a.stderr, nil)).With("vm", name), nil
	case "text":
		return slog.New(a.textHandler(name)), nil
	case "auto":
		if ok, err := journal.StderrIsJournalStream(); err == nil && ok {
			return slog.New(&journalHandler{}).With("vm", name), nil
		}
		return slog.New(a.textHandler(name)), nil
	}
	return nil, fmt.Errorf("unknown log format %q: text, json or auto", format)
}

// vmmLog is where the hypervisor's own words go: as they are, or as records
// where somebody reads JSON.
func (a *app) vmmLog(format string, log *slog.Logger) io.Writer {
	if format != "json" {
		return a.stderr
	}
	return &lineLog{log}
}

type lineLog struct{ log *slog.Logger }

func (l *lineLog) Write(b []byte) (int, error) {
	for line := range strings.Lines(string(b)) {
		l.log.Info(strings.TrimRight(line, "\r\n"), "from", "hypervisor")
	}
	return len(b), nil
}

func (a *app) textHandler(name string) *textHandler {
	return &textHandler{w: a.stderr, style: styleOf(a.stderr, a.getenv), name: name}
}

// textHandler writes the message, which is a sentence, and the hint. The other
// attributes say the same to machines and are left out.
type textHandler struct {
	w     *os.File
	style style
	name  string
}

func (h *textHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }
func (h *textHandler) WithAttrs([]slog.Attr) slog.Handler           { return h }
func (h *textHandler) WithGroup(string) slog.Handler                { return h }

func (h *textHandler) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: ", h.name)
	switch {
	case r.Level >= slog.LevelError:
		b.WriteString(h.style.red("error: "))
	case r.Level >= slog.LevelWarn:
		b.WriteString(h.style.yellow("warning: "))
	}
	b.WriteString(r.Message)
	r.Attrs(func(at slog.Attr) bool {
		switch {
		case at.Key == "error":
			fmt.Fprintf(&b, ": %v", at.Value)
		case at.Key == "hint" && at.Value.String() != "":
			fmt.Fprintf(&b, "\n    %s%v", h.style.bold("hint: "), at.Value)
		}
		return true
	})
	b.WriteByte('\n')
	_, err := io.WriteString(h.w, b.String())
	return err
}

// objectUnit is the attribute that names the unit a record is about (systemd.journal-fields(7)).
const objectUnit = "object_systemd_unit"

// journalHandler sends each record with its attributes as fields (systemd.journal-fields(7)).
type journalHandler struct{ attrs []slog.Attr }

func (h *journalHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }
func (h *journalHandler) WithGroup(string) slog.Handler                { return h }

func (h *journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &journalHandler{attrs: append(append([]slog.Attr{}, h.attrs...), attrs...)}
}

func (h *journalHandler) Handle(_ context.Context, r slog.Record) error {
	fields := make(map[string]string)
	message := r.Message
	add := func(at slog.Attr) bool {
		key := "VMCRED_" + strings.ToUpper(strings.ReplaceAll(at.Key, "-", "_"))
		if at.Key == objectUnit {
			// systemctl status UNIT shows what root's daemons say of a unit so.
			if at.Value.String() == "" {
				return true
			}
			key = "OBJECT_SYSTEMD_UNIT"
		}
		fields[key] = at.Value.String()
		if at.Key == "error" {
			message += ": " + at.Value.String()
		}
		return true
	}
	for _, at := range h.attrs {
		add(at)
	}
	r.Attrs(add)
	priority := journal.PriInfo
	switch {
	case r.Level >= slog.LevelError:
		priority = journal.PriErr
	case r.Level >= slog.LevelWarn:
		priority = journal.PriWarning
	}
	return journal.Send(message, priority, fields)
}
