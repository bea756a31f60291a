#!/usr/bin/env bash
# Runs the tests ("short", the default, or "long") with the checks of format and lints beside them: most
# tests wait for a guest, a server or a clock, so that the lints cost next to nothing at idle priority.
# What the checks found is printed before the runner's own summary can be the last line, and fails the run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

which=${1:-short}
case $which in short|long) ;; *) echo "usage: $0 [short|long]" >&2; exit 2 ;; esac
target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target"

if ! command -v cargo-nextest >/dev/null; then
    # The plain runner builds as it goes, and would wait for the lints.
    checked=0; make --no-print-directory check || checked=1
    case $which in
        short) cargo test --workspace ;;
        long) cargo test --workspace -- --include-ignored --skip freeze_ ;;
    esac
    exit $checked
fi

# Built before the lints begin: both would wait for the other's lock. What the runner needs to know of the
# binaries is noted, so that it asks cargo for nothing while the lints are at work.
cargo nextest list --workspace --list-type binaries-only --message-format json >"$target/test-binaries.json"
cargo metadata --format-version 1 >"$target/test-metadata.json"
chrt --idle 0 make --no-print-directory check >"$target/check.log" 2>&1 &
check=$!
trap 'kill "$check" 2>/dev/null || true' EXIT

long=()
# All but those that write the frozen journals anew.
[ "$which" = short ] || long=(--run-ignored all -E 'not test(freeze_)')
tested=0
cargo nextest run --binaries-metadata "$target/test-binaries.json" \
    --cargo-metadata "$target/test-metadata.json" --test-threads $((3 * $(nproc))) "${long[@]}" || tested=$?

checked=0
wait "$check" || checked=$?
if [ $checked -ne 0 ]; then
    echo "run.sh: the tests are through, but format or lints are not right (make check):" >&2
    cat "$target/check.log" >&2
fi
[ $tested -eq 0 ] && [ $checked -eq 0 ]
