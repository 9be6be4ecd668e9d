#!/usr/bin/env bash
# Builds the nepa program and runs every test, then sums the runners' counts into one closing line.
# NEPA_TEST_DATA and NEPA_GOLDEN name folders of larger test data; tests that need them say SKIPPED without them.
set -uo pipefail
cd "$(dirname "$0")/.."
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# With the tests, as they choose features of dependencies (tokio's clock): by themselves, the programs would take those dependencies built once more.
cargo build --locked --workspace --bins --tests || exit 1
cargo test --locked --workspace --no-fail-fast -- --show-output 2>&1 | tee "$log"
status=${PIPESTATUS[0]}

# "test result: ok. 12 passed; 0 failed; 1 ignored; ..." one line a test binary.
read -r passed failed ignored < <(awk '/^test result:/ { for (i = 1; i <= NF; i++) {
    if ($i ~ /^passed/) p += $(i-1); if ($i ~ /^failed/) f += $(i-1); if ($i ~ /^ignored/) g += $(i-1) } }
    END { print p + 0, f + 0, g + 0 }' "$log")
skipped=$(( ignored + $(grep -c '^SKIPPED: ' "$log") ))
if [ "$status" -ne 0 ] && [ "$failed" -eq 0 ]; then failed=1; fi # a test binary that did not build or crashed
echo
echo "$passed passed, $failed failed, $skipped skipped"
[ "$status" -eq 0 ]
