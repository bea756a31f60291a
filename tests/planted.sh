#!/bin/bash
# Plants each bug in the journal and runs its tests: every one must be caught. One build for all:
# the feature `planted` lets AFTERIMAGE_PLANTED say which bug is in. Prints a table.
#
#   tests/planted.sh [NAME]...
set -u
cd "$(dirname "$0")/.."
target=target/planted
bugs=("$@")
if [ ${#bugs[@]} = 0 ]; then
    mapfile -t bugs < <(grep -rhoE 'planted::is\("[a-z-]+"\)' journal/src | cut -d'"' -f2 | sort -u)
fi
build() {
    cargo test --quiet -p afterimage-journal --features planted --target-dir "$target" --no-run \
        --message-format=json 2>/dev/null |
        grep -oE '"executable":"[^"]+"' | cut -d'"' -f4
}
mapfile -t binaries < <(build)
if [ ${#binaries[@]} = 0 ]; then
    echo "the tests can't be built with bugs in" >&2
    exit 1
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
survived=0
printf '%-26s %s\n' "planted" "caught by"
for bug in "" "${bugs[@]}"; do
    caught=""
    # The simulation first: it catches most, and stops at its first failing seeds.
    for binary in $(printf '%s\n' "${binaries[@]}" | sort -r); do
        AFTERIMAGE_PLANTED=$bug RUST_BACKTRACE=0 timeout 300 "$binary" >"$log" 2>&1 && continue
        caught=$(sed -nE 's/^test (.*) \.\.\. FAILED$/\1/p' "$log" | paste -sd ' ')
        caught=${caught:-a hang in $(basename "$binary")}
        break
    done
    if [ -z "$bug" ]; then
        [ -z "$caught" ] && continue
        echo "without any bug these fail: $caught" >&2
        exit 1
    fi
    printf '%-26s %s\n' "$bug" "${caught:-NOTHING: it survived}"
    [ -n "$caught" ] || survived=1
done
exit $survived
