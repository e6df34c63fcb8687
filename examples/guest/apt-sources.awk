# SPDX-License-Identifier: Apache-2.0
# Prints those entries of apt's source files that look like the Debian archive
# of one suite, in deb822 form, whatever form they were in. Mirrors, keys and
# options stay as they are. Backports are left out.
#
#   awk -v host=bookworm -v want=trixie -f apt-sources.awk FILE...
#
# host is the suite this machine runs; an entry for it (or for an alias such as
# "stable") becomes one for want.

function rename(suite,    base, rest) {
	base = suite
	sub(/-.*/, "", base)
	rest = substr(suite, length(base) + 1)
	if (base != host && base !~ /^(oldstable|stable|testing|unstable|sid)$/)
		return ""
	if (rest != "" && rest != "-updates" && rest != "-security")
		return ""
	return want == host ? suite : want rest
}

function has(list, word) {
	return index(" " list " ", " " word " ") > 0
}

# emit prints one deb822 stanza if any of its suites is wanted.
function emit(uris, suites, components, other,    n, parts, i, s, out) {
	gsub(/[ \t\n]+/, " ", suites)
	gsub(/[ \t\n]+/, " ", components)
	n = split(suites, parts, " ")
	for (i = 1; i <= n; i++) {
		s = rename(parts[i])
		if (s != "" && !has(out, s))
			out = out (out == "" ? "" : " ") s
	}
	if (out == "" || !has(components, "main") || uris ~ /^ *cdrom:/)
		return
	printf "Types: deb\nURIs: %s\nSuites: %s\nComponents: main\n%s\n", uris, out, other
}

# One-line form: deb [option=value ...] URI SUITE COMPONENT...
function oneline(line,    opts, other, n, parts, i, eq, key, rest) {
	sub(/[ \t]#.*/, "", line)
	sub(/^[ \t]*deb[ \t]+/, "", line)
	if (line ~ /^\[/) {
		opts = substr(line, 2, index(line, "]") - 2)
		line = substr(line, index(line, "]") + 1)
	}
	n = split(opts, parts, /[ \t]+/)
	for (i = 1; i <= n; i++) {
		eq = index(parts[i], "=")
		key = tolower(substr(parts[i], 1, eq - 1))
		gsub(/,/, " ", parts[i])
		if (key != "" && key != "arch" && key != "lang")
			other = other key ": " substr(parts[i], eq + 1) "\n"
	}
	n = split(line, parts, /[ \t]+/)
	for (i = 1; i <= n && parts[i] == ""; i++);
	for (eq = i + 2; eq <= n; eq++)
		rest = rest " " parts[eq]
	emit(parts[i], parts[i + 1], rest, other)
}

function stanza(    name, other) {
	if (has(value["types"], "deb") && tolower(value["enabled"]) !~ /^ *(no|false|0|off|without|disable) *$/) {
		for (name in value)
			if (name !~ /^(types|uris|suites|components|enabled|architectures|languages)$/)
				other = other name ":" value[name] "\n"
		emit(value["uris"], value["suites"], value["components"], other)
	}
	split("", value)
	field = ""
}

FNR == 1 { stanza() }
FILENAME ~ /\.list$/ {
	if ($1 == "deb") oneline($0)
	next
}
/^#/ { next }
/^[ \t]*$/ { stanza(); next }
/^[ \t]/ { value[field] = value[field] "\n" $0; next }
{
	field = tolower($0)
	sub(/[ \t]*:.*/, "", field)
	value[field] = substr($0, index($0, ":") + 1)
}
END { stanza() }
