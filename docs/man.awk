# docs/man.awk - a man page from restricted Markdown: "# name(1)" first, "## SECTION", paragraphs, "- term: text" or
# "- text" lists, four-blank code blocks or fenced ones, `code` and **bold**.
function inline(text,    out, i, c) {
    gsub(/\\/, "\\e", text)
    while (match(text, /`[^`]+`/))
        text = substr(text, 1, RSTART - 1) "\\fB" substr(text, RSTART + 1, RLENGTH - 2) "\\fR" substr(text, RSTART + RLENGTH)
    while (match(text, /\*\*[^*]+\*\*/))
        text = substr(text, 1, RSTART - 1) "\\fB" substr(text, RSTART + 2, RLENGTH - 4) "\\fR" substr(text, RSTART + RLENGTH)
    gsub(/-/, "\\-", text)
    if (text ~ /^['.]/)
        text = "\\&" text
    return text
}
/^```/ {
    code = !code
    print code ? ".PP\n.nf\n.RS 4" : ".RE\n.fi"
    next
}
code {
    text = $0
    gsub(/\\/, "\\e", text)
    gsub(/-/, "\\-", text)
    if (text ~ /^['.]/)
        text = "\\&" text
    print text
    next
}
/^# / {
    name = $2
    section = name
    sub(/\(.*/, "", name)
    gsub(/.*\(|\)/, "", section)
    printf ".TH \"%s\" \"%s\" \"\" \"spate\" \"spate manual\"\n", toupper(name), section
    next
}
/^## / {
    print ".SH \"" substr($0, 4) "\""
    fresh = 1
    next
}
/^- / {
    text = substr($0, 3)
    at = index(text, ": ")
    if (at > 0) {
        print ".TP"
        print inline(substr(text, 1, at - 1))
        print inline(substr(text, at + 2))
    } else {
        print ".IP \\(bu 2"
        print inline(text)
    }
    fresh = 0
    next
}
/^[[:space:]]*$/ {
    if (!fresh)
        blank = 1
    next
}
{
    if (blank && $0 !~ /^  /)
        print ".PP"
    blank = 0
    fresh = 0
    sub(/^ +/, "")
    print inline($0)
}
