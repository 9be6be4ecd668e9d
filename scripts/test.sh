#!/usr/bin/env bash
# Builds the nepa program and runs every test, then sums the runners' counts into one closing line.
# NEPA_TEST_DATA and NEPA_GOLDEN name folders of larger test data; tests that need them say SKIPPED without them.
set -uo pipefail
cd "$(dirname "$0")/.."
log=$(mktemp)
trap 'rm -f "$log"' EXIT

scripts/dev-build.sh || exit 1
# Tests of servers and of waits sleep half of the time, so one more runs at once than there are cores.
cargo test --locked --workspace --no-fail-fast -- --show-output --test-threads=$(($(nproc) + 1)) 2>&1 | tee "$log"
status=${PIPESTATUS[0]}

echo
scripts/sum-tests.sh "$log"
exit "$status"
