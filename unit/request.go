// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"strings"

	"github.com/vmcred/vmcred/vm"
)

// Request is one credential, or one pattern of credentials, that a unit asks for.
type Request struct {
	Unit    string // "demo.service"
	Setting string // "LoadCredential", "LoadCredentialEncrypted" or "ImportCredential"
	// ID is the name in the service's own $CREDENTIALS_DIRECTORY; for
	// ImportCredential= what the name is renamed to, or empty.
	ID string
	// Name is the system credential asked for; for ImportCredential= it may end
	// in "*". Empty if the value comes from a path.
	Name string
	// Path is where the value comes from instead of the system credentials.
	Path string
	// Fallback is true if SetCredential= gives the service a value anyway.
	Fallback bool
	// Dynamic is true if ID, Name or Path holds a specifier (%i). All three are
	// then as written; otherwise "%%" has become "%".
	Dynamic bool
	Pos     vm.Pos
}

// Wants says whether the request takes the system credential name. A specifier
// may stand for anything.
func (r Request) Wants(name string) bool {
	pattern := r.Name
	if pattern == "" {
		return false
	}
	star := r.Setting == "ImportCredential" && strings.HasSuffix(pattern, "*")
	if star {
		pattern = strings.TrimSuffix(pattern, "*")
	}
	parts := []string{pattern}
	if r.Dynamic {
		parts = literals(pattern)
	}
	if len(parts) == 1 && !star {
		return parts[0] == name
	}
	if star {
		parts = append(parts, "")
	}
	rest, ok := strings.CutPrefix(name, parts[0])
	if !ok {
		return false
	}
	for _, part := range parts[1 : len(parts)-1] {
		i := strings.Index(rest, part)
		if i < 0 {
			return false
		}
		rest = rest[i+len(part):]
	}
	return strings.HasSuffix(rest, parts[len(parts)-1])
}

// Literal returns the one name the request asks for, or "" if it is a pattern,
// holds a specifier or comes from a path.
func (r Request) Literal() string {
	if r.Dynamic || (r.Setting == "ImportCredential" && strings.HasSuffix(r.Name, "*")) {
		return ""
	}
	return r.Name
}

// expand undoes "%%" unless there is a real specifier.
func (r Request) expand() Request {
	id, name, path := literals(r.ID), literals(r.Name), literals(r.Path)
	r.Dynamic = len(id)+len(name)+len(path) > 3
	if !r.Dynamic {
		r.ID, r.Name, r.Path = id[0], name[0], path[0]
	}
	return r
}

// literals cuts s at its specifiers; "%%" is a plain "%".
func literals(s string) []string {
	out := []string{""}
	for i := 0; i < len(s); i++ {
		last := len(out) - 1
		switch {
		case s[i] != '%' || i+1 == len(s):
			out[last] += s[i : i+1]
		case s[i+1] == '%':
			out[last] += "%"
			i++
		default:
			out = append(out, "")
			i++
		}
	}
	return out
}

// Requests reads a unit's assignments, in the order systemd applies them: the
// unit's file first, then its drop-ins. An empty assignment forgets what came
// before; a later LoadCredential= of the same ID replaces the earlier one.
func Requests(name string, as []Assignment) []Request {
	var loads, imports []Request
	set, at := map[string]bool{}, map[string]int{}
	section := execSection(name)
	for _, a := range as {
		if a.Section != section {
			continue
		}
		switch a.Key {
		case "LoadCredential", "LoadCredentialEncrypted":
			if a.Value == "" {
				loads = nil
				clear(at)
			} else if r, ok := loadRequest(name, a); ok {
				if i, again := at[r.ID]; again {
					loads[i] = r
					continue
				}
				at[r.ID] = len(loads)
				loads = append(loads, r)
			}
		case "ImportCredential":
			if a.Value == "" {
				imports = nil
			} else if r, ok := importRequest(name, a); ok {
				imports = append(imports, r)
			}
		case "SetCredential", "SetCredentialEncrypted":
			if a.Value == "" {
				clear(set)
			} else if id, _, ok := cutID(a.Value); ok {
				set[Request{ID: id}.expand().ID] = true
			}
		}
	}
	for i := range loads {
		loads[i].Fallback = set[loads[i].ID]
	}
	return append(loads, imports...)
}

// execSection is the section that holds the settings of systemd.exec(5).
func execSection(name string) string {
	for suffix, section := range map[string]string{
		".service": "Service", ".socket": "Socket", ".mount": "Mount", ".swap": "Swap",
	} {
		if strings.HasSuffix(name, suffix) {
			return section
		}
	}
	return ""
}

// loadRequest reads ID, ID:NAME or ID:/PATH. ID alone means ID:ID.
func loadRequest(name string, a Assignment) (Request, bool) {
	id, rest, ok := cutID(a.Value)
	if !ok {
		return Request{}, false
	}
	r := Request{Unit: name, Setting: a.Key, ID: id, Pos: a.Pos}
	switch {
	case rest == "":
		r.Name = id
	case rest[0] == '/' || strings.HasPrefix(rest, "%") && !strings.HasPrefix(rest, "%%") && strings.Contains(rest, "/"):
		r.Path = rest
	case strings.Contains(rest, "/"):
		return Request{}, false // neither a name nor an absolute path: systemd ignores the line
	default:
		r.Name = rest
	}
	return r.expand(), true
}

// importRequest reads NAME, GLOB* or, since systemd 257, either with :RENAME.
func importRequest(name string, a Assignment) (Request, bool) {
	glob, rename, ok := cutID(a.Value)
	if !ok || strings.ContainsAny(glob, "/?[") || strings.Contains(strings.TrimSuffix(glob, "*"), "*") {
		return Request{}, false
	}
	return Request{Unit: name, Setting: a.Key, ID: rename, Name: glob, Pos: a.Pos}.expand(), true
}

// cutID cuts a value at its first ":" as extract_first_word() does: a backslash
// stands for the character behind it, and is gone. What follows is left alone.
func cutID(value string) (id, rest string, ok bool) {
	var b strings.Builder
	for i := 0; i < len(value); i++ {
		switch c := value[i]; c {
		case ':':
			return b.String(), value[i+1:], b.Len() > 0
		case '\\':
			if i++; i == len(value) {
				return "", "", false
			}
			b.WriteByte(value[i])
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), "", b.Len() > 0
}
