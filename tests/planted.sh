#!/bin/bash
# Plants each bug in the program and runs the tests that must catch it. `planted::is("NAME")` marks where a
# bug can be put in; the feature `on` of the crate afterimage-planted compiles all of them in, and
# AFTERIMAGE_PLANTED says which one is active. Prints a table.
#
#   tests/planted.sh [NAME]...
#
# tests/planted.txt names package and test for a bug. One that is not named there is looked for by all tests
# of the crate that it stands in.
set -u
cd "$(dirname "$0")/.."
target=${AFTERIMAGE_PLANTED_TARGET:-target/planted}
bugs=("$@")
if [ ${#bugs[@]} = 0 ]; then
    mapfile -t bugs < <(git grep -hoE 'planted::is\("[a-z0-9-]+"\)' -- '*.rs' | cut -d'"' -f2 | sort -u)
fi

# The package of the crate that a bug stands in.
package_of() {
    local file
    file=$(git grep -lF "planted::is(\"$1\")" -- '*.rs' | head -n 1)
    while [ -n "$file" ] && [ "$file" != . ]; do
        file=$(dirname "$file")
        [ -f "$file/Cargo.toml" ] && sed -n 's/^name = "\(.*\)"/\1/p' "$file/Cargo.toml" | head -n 1 && return
    done
}

# Directory of a package.
package_dir() {
    git ls-files '*Cargo.toml' | xargs grep -lE "^name = \"$1\"" | head -n 1 | xargs dirname
}

log=$(mktemp)
trap 'rm -f "$log"' EXIT

# Builds all tests, once: package by package, each would build its dependencies anew.
built=$(cargo test --quiet --workspace --features afterimage-planted/on --target-dir "$target" --no-run \
    --message-format=json | grep -F '"executable":"' | grep -vF '"kind":["example"]')
[ -n "$built" ] || { echo "the tests do not build with bugs in" >&2; exit 1; }

# The test binaries of a package; the simulation's first, since it catches most.
binaries_of() {
    local manifest
    manifest=$(realpath "$(package_dir "$1")/Cargo.toml")
    grep -F "\"manifest_path\":\"$manifest\"" <<<"$built" | grep -F '"test":true}' |
        grep -oE '"executable":"[^"]+"' | cut -d'"' -f4 | sort -r
}

# Runs a package's tests with a bug active (or none); says which test failed.
run() {
    local bug=$1 package=$2 caught
    shift 2
    for binary in $(binaries_of "$package"); do
        (cd "$(package_dir "$package")" && AFTERIMAGE_PLANTED=$bug RUST_BACKTRACE=0 timeout 600 "$binary" "$@") \
            >"$log" 2>&1 && continue
        caught=$(sed -nE 's/^test (.*) \.\.\. FAILED$/\1/p' "$log" | paste -sd ' ')
        echo "${caught:-a hang in $(basename "$binary")}"
        return
    done
}

survived=0
printf '%-34s %s\n' "planted" "caught by"
for bug in "${bugs[@]}"; do
    read -r _ package tests < <(grep -E "^$bug " tests/planted.txt || true)
    package=${package:-$(package_of "$bug")}
    if [ -z "$package" ]; then
        echo "no code asks for the bug $bug" >&2
        exit 1
    fi
    # shellcheck disable=SC2086
    caught=$(run "$bug" "$package" ${tests:-})
    # A test that fails without any bug catches none.
    case $caught in "" | "a hang in "*) ;; *)
        if [ -n "$(run "" "$package" --exact "${caught%% *}")" ]; then
            caught="nothing sure: ${caught%% *} fails without the bug, too"
            survived=1
        fi ;;
    esac
    printf '%-34s %s\n' "$bug" "${caught:-NOTHING: it survived}"
    [ -n "$caught" ] || survived=1
done
exit $survived
