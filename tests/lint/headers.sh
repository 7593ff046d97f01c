#!/bin/sh
# Compiles every header alone, so that none leans on what stands above it at its users'.
# usage: headers.sh COMPILER FLAG ...      (run from the root)
set -eu
compiler=$1
shift
status=0
for header in $(find core config schemas bus pg connector sinks cli -name '*.h' | sort); do
    if ! words=$(printf '#include "%s"\n' "$header" | "$compiler" "$@" -Werror -fsyntax-only -x c - 2>&1); then
        printf '%s: does not compile alone (%s)\n%s\n' "$header" "$compiler" "$words"
        status=1
    fi
done
exit $status
