#!/usr/bin/env bash
# Sums what test runners said in LOG... into one closing line: "N passed, N failed, N skipped".
set -euo pipefail
# cargo test: "test result: ok. 12 passed; 0 failed; 1 ignored; ..." one line a test binary; tests that skip themselves say so.
# pytest: "=== 1 failed, 12 passed, 3 skipped, 1 error in 4.56s ==="; our tests tell each skip by a line of its own, too.
cat "$@" | awk '
    /^test result:/ { for (i = 2; i <= NF; i++) {
        if ($i ~ /^passed/) p += $(i-1); if ($i ~ /^failed/) f += $(i-1); if ($i ~ /^ignored/) s += $(i-1) } }
    /^SKIPPED: / { s++ }
    /^=+ .* in [0-9.]+s( \([0-9:]+\))? =+$/ { for (i = 2; i <= NF; i++) {
        if ($i ~ /^passed/) p += $(i-1); if ($i ~ /^(failed|errors?)/) f += $(i-1) } }
    END { printf "%d passed, %d failed, %d skipped\n", p, f, s }'
