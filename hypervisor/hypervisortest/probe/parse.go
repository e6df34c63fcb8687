// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
)

const (
	prefix    = "probe: "
	first     = "probe: begin 1"
	maxReport = 64 << 20 // bytes of console output Parse looks at
)

// ErrCut says that a report does not end with its last line.
var ErrCut = errors.New("the report has no end: the guest stopped, or its console lost output")

// Parse reads one report from a guest's console. What the firmware wrote
// before it is skipped; within it every byte must be as the guest writes it.
// A second report, of a guest that was reset in the same VMM, is an error, and
// so is a fault the guest itself reports.
func Parse(r io.Reader) (*Report, error) {
	p := &parser{in: bufio.NewReader(io.LimitReader(r, maxReport))}
	if err := p.skipToFirst(); err != nil {
		return nil, err
	}
	out := new(Report)
	if err := p.report(out); err != nil {
		return nil, fmt.Errorf("line %d of the console: %w", p.line, err)
	}
	if err := p.noMore(); err != nil {
		return nil, err
	}
	return out, nil
}

// parser holds one line ahead: its kind, the word after "probe: ", and the rest.
type parser struct {
	in         *bufio.Reader
	line       int
	kind, rest string
}

// read returns one line without its newline. A line that has none is cut.
func (p *parser) read() (string, error) {
	s, err := p.in.ReadString('\n')
	if errors.Is(err, io.EOF) {
		return "", ErrCut
	}
	if err != nil {
		return "", err
	}
	p.line++
	return strings.TrimSuffix(s, "\n"), nil
}

func (p *parser) skipToFirst() error {
	for {
		line, err := p.read()
		if errors.Is(err, ErrCut) {
			return fmt.Errorf("no %q on the console: the guest did not start", first)
		}
		if err != nil {
			return err
		}
		if line == first {
			return nil
		}
		if strings.HasPrefix(line, prefix) {
			return fmt.Errorf("line %d of the console: %q before %q", p.line, line, first)
		}
	}
}

// noMore reads what follows the report. Firmware may speak, the guest may not.
func (p *parser) noMore() error {
	for {
		s, err := p.in.ReadString('\n')
		if strings.HasPrefix(s, prefix) {
			return fmt.Errorf("the guest reported twice: it was reset in the same VMM (%q after its end)", strings.TrimSpace(s))
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (p *parser) advance() error {
	line, err := p.read()
	if err != nil {
		return err
	}
	body, ok := strings.CutPrefix(line, prefix)
	if !ok {
		return fmt.Errorf("%q is no line of a report", line)
	}
	p.kind, p.rest, _ = strings.Cut(body, " ")
	if p.kind == "error" {
		return fmt.Errorf("the guest reports: %s", p.rest)
	}
	return nil
}

// take parses the line ahead, which must be of one kind, and reads the next.
func (p *parser) take(kind string, parse func(*fields)) error {
	if p.kind != kind {
		return fmt.Errorf("a line %q where %q belongs", p.kind, kind)
	}
	f := &fields{rest: p.rest}
	parse(f)
	if f.err == nil && f.rest != "" {
		f.err = fmt.Errorf("%q is too much", f.rest)
	}
	if f.err != nil {
		return fmt.Errorf("%s: %w", kind, f.err)
	}
	return p.advance()
}

// report reads the lines after the first, in the one order the guest has.
func (p *parser) report(out *Report) error {
	if err := p.advance(); err != nil {
		return err
	}
	err := p.take("platform", func(f *fields) { out.Platform = f.word() })
	if err != nil {
		return err
	}
	if err := p.take("cmdline", func(f *fields) { out.Cmdline = f.memory() }); err != nil {
		return err
	}
	for p.kind == "initrd" {
		var m Memory
		if err := p.take("initrd", func(f *fields) { m = f.memory() }); err != nil {
			return err
		}
		out.Initrds = append(out.Initrds, m)
	}
	if err := p.smbios(out); err != nil {
		return err
	}
	if err := p.fwCfg(out); err != nil {
		return err
	}
	if p.kind == "ready" {
		if err := p.ready(out); err != nil {
			return err
		}
	}
	if p.kind != "end" || p.rest != "" {
		return fmt.Errorf("a line %q where the report's end belongs", p.kind)
	}
	return nil
}

func (p *parser) smbios(out *Report) error {
	err := p.take("smbios", func(f *fields) {
		if f.rest == "none" {
			f.word()
			return
		}
		out.SMBIOS = &SMBIOS{
			Anchor: f.choice("anchor", "_SM_", "_SM3_"), At: f.hex32("at"), Table: f.hex32("table"),
			Bytes: f.dec("bytes", 1<<32-1), Count: f.dec("structures", 1<<16-1),
		}
	})
	if err != nil || out.SMBIOS == nil {
		return err
	}
	for p.kind == "structure" {
		s, err := p.structure()
		if err != nil {
			return err
		}
		out.SMBIOS.Structures = append(out.SMBIOS.Structures, s)
	}
	if n := uint32(len(out.SMBIOS.Structures)); out.SMBIOS.Count != 0 && n != out.SMBIOS.Count {
		return fmt.Errorf("%d structures where the table says %d", n, out.SMBIOS.Count)
	}
	return nil
}

func (p *parser) structure() (Structure, error) {
	var s Structure
	err := p.take("structure", func(f *fields) {
		s.Type = uint8(f.dec("type", 255))
		s.Handle = f.hex16("handle")
		s.Bytes = f.dec("bytes", 1<<32-1)
		if s.Type == oemStrings {
			s.Count = uint8(f.dec("count", 255))
		}
		s.Found = f.dec("strings", 1<<32-1)
	})
	if err != nil || s.Type != oemStrings {
		return s, err
	}
	for len(s.Strings) < int(s.Found) {
		var v String
		err := p.take("string", func(f *fields) {
			if h := f.hex16("handle"); f.err == nil && h != s.Handle {
				f.err = fmt.Errorf("handle %#04x in structure %#04x", h, s.Handle)
			}
			v = String{Index: f.dec("index", 1<<32-1), Bytes: f.dec("bytes", 1<<32-1), SHA256: f.digest()}
		})
		if err != nil {
			return s, err
		}
		s.Strings = append(s.Strings, v)
		if int(v.Index) != len(s.Strings) {
			return s, fmt.Errorf("string %d where %d belongs", v.Index, len(s.Strings))
		}
	}
	return s, nil
}

func (p *parser) fwCfg(out *Report) error {
	if p.kind == "fw_cfg" && p.rest == "none" {
		return p.take("fw_cfg", func(f *fields) { f.word() })
	}
	for p.kind == "fw_cfg" {
		var v File
		err := p.take("fw_cfg", func(f *fields) {
			v.Name, v.Bytes = f.escaped("name"), f.dec("bytes", 1<<32-1)
			if v.Digested = f.rest != ""; v.Digested {
				v.SHA256 = f.digest()
			}
		})
		if err != nil {
			return err
		}
		out.HasFwCfg = true
		out.FwCfg = append(out.FwCfg, v)
	}
	return nil
}

func (p *parser) ready(out *Report) error {
	r := new(Ready)
	out.Ready = r
	err := p.take("ready", func(f *fields) {
		switch f.rest {
		case "none":
			f.word()
		case "invalid":
			f.word()
			r.Found, r.Invalid = true, true
		default:
			r.Found, r.CID, r.Port = true, f.dec("cid", 1<<32-1), f.dec("port", 1<<32-1)
		}
	})
	if err != nil || !r.Found || r.Invalid {
		return err
	}
	for p.kind == "message" {
		var m Message
		err := p.take("message", func(f *fields) {
			n := f.dec("bytes", 1<<32-1)
			m.End = Ending(f.choice("end", string(Closed), string(Cut), string(Refused), string(TimedOut)))
			m.Text = f.escaped("text")
			if f.err == nil && int(n) != len(m.Text) {
				f.err = fmt.Errorf("%d bytes of text where %d belong", len(m.Text), n)
			}
		})
		if err != nil {
			return err
		}
		r.Messages = append(r.Messages, m)
	}
	return nil
}
