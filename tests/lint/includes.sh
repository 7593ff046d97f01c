#!/bin/sh
# Holds the one direction in which folders may include each other (docs/decisions.md), and that connector and
# sinks never learn which bus driver is behind bus/bus.h. Run from the root; prints each offence, exits 1.
set -eu
cd "$(dirname "$0")/../.."

uses() {
    case $1 in
    core) echo core ;;
    config) echo config core ;;
    schemas) echo schemas core ;;
    bus) echo bus core ;;
    pg) echo pg core ;;
    connector) echo connector config schemas bus pg core ;;
    sinks) echo sinks config schemas bus pg core ;;
    cli) echo cli connector sinks config schemas bus pg core ;;
    esac
}

offences=$(
    for folder in core config schemas bus pg connector sinks cli; do
        allowed=$(uses "$folder")
        # Every quoted include, as FILE:LINE:PATH.
        find "$folder" -name '*.[ch]' -exec grep -HnoE '^[[:space:]]*#[[:space:]]*include[[:space:]]*"[^"]+"' {} + |
            sed -E 's/#[[:space:]]*include[[:space:]]*"([^"]+)"/\1/; s/:[[:space:]]+/:/' |
            while IFS=: read -r file line path; do
                case $path in
                */*) room=${path%%/*} ;;
                *)
                    echo "$file:$line: \"$path\" is not written from the root; write \"$folder/$path\""
                    continue
                    ;;
                esac
                case " $allowed " in
                *" $room "*) ;;
                *) echo "$file:$line: $folder/ may include $allowed, not \"$path\"" ;;
                esac
                case $folder:$path in
                connector:bus/bus.h | connector:bus/open.h | sinks:bus/bus.h | sinks:bus/open.h) ;;
                connector:bus/* | sinks:bus/*)
                    echo "$file:$line: $folder/ knows of a bus only bus/bus.h and bus/open.h, not \"$path\""
                    ;;
                esac
                [ -f "$path" ] || echo "$file:$line: there is no \"$path\""
            done
    done
)
[ -z "$offences" ] && exit 0
echo "$offences"
exit 1
