#!/bin/sh
# Installs what demo and tests need and this machine lacks (docker/packages), and says so first.
# Nothing that is there already is touched or upgraded; where nothing is missing, apt is not called at all.
# usage: docker/setup.sh [--quiet] [--tests] [--arm]      as root, or as a user who may use sudo
#   --tests: also what only make test and make soak need
#   --arm: also what make lab-arm needs
set -eu

quiet=
tests=
arm=
for word; do
    case $word in
    --quiet) quiet=1 ;;
    --tests) tests=1 ;;
    --arm) arm=1 ;;
    *)
        echo "usage: docker/setup.sh [--quiet] [--tests] [--arm]" >&2
        exit 2
        ;;
    esac
done

here=$(cd "$(dirname "$0")" && pwd)
list=$here/packages
export PATH="$PATH:/usr/sbin:/sbin"

missing=
why=
wanted=1
while IFS='|' read -r package probe reason; do
    package=$(echo "$package" | tr -d ' ')
    case $package in
    '' | '#'*) continue ;;
    '[tests]')
        wanted=$tests
        continue
        ;;
    '[arm]')
        wanted=$arm
        continue
        ;;
    esac
    [ -n "$wanted" ] || continue
    if ! sh -c "$probe" </dev/null >/dev/null 2>&1; then
        missing="$missing $package"
        why="$why$(printf '  %-20s%s' "$package" "$reason")
"
    fi
done <"$list"

if [ -z "$missing" ]; then
    [ -n "$quiet" ] || echo "setup: everything is here already"
    exit 0
fi

echo "setup: this machine lacks"
printf '%s' "$why"

if ! command -v apt-get >/dev/null 2>&1; then
    echo "setup: there is no apt-get here. Install the equivalents of the packages above, then try again." >&2
    exit 1
fi
if [ "$(id -u)" = 0 ]; then
    as_root=
elif command -v sudo >/dev/null 2>&1; then
    as_root=sudo
else
    echo "setup: installing needs root. Run as root: apt-get install$missing" >&2
    exit 1
fi

# Debian's server package makes and starts a system-wide cluster when it is first installed. Nobody asked for
# one: a setting that exists only during the installation keeps it from doing so.
policy=/etc/postgresql-common/createcluster.d/spate-setup.conf
remove_policy() { $as_root rm -f "$policy"; }
if ! command -v pg_lsclusters >/dev/null 2>&1; then
    trap remove_policy EXIT
    trap 'exit 130' INT TERM
    $as_root mkdir -p "$(dirname "$policy")"
    echo "create_main_cluster = false" | $as_root tee "$policy" >/dev/null
fi

install() {
    # shellcheck disable=SC2086
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-upgrade --no-install-recommends \
        -o Dpkg::Use-Pty=0 $missing
}

echo "setup: installing them with apt-get"
log=$(mktemp)
if ! install >"$log" 2>&1; then
    # The package lists may be old or may never have been fetched.
    echo "setup: fetching the package lists first"
    if ! { $as_root apt-get update -q && install; } >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        echo "setup: apt-get failed, see above (all of it: $log). Mend that, or install by hand:$missing" >&2
        exit 1
    fi
fi
rm -f "$log"
echo "setup: done"
