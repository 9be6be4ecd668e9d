#!/usr/bin/env bash
# Which lines of pipeline/src/backend/cuda and model/src/cuda do the tests on stand-ins (scripts/gpu-test.sh) execute? Prints each file's share and
# the lines that none did. Needs LLVM's tools in rustc's major version (Debian: apt-get install llvm-22).
set -euo pipefail
cd "$(dirname "$0")/.."
llvm=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
for tool in llvm-profdata llvm-cov; do
    command -v "$tool-$llvm" >/dev/null || {
        echo "error: $tool-$llvm was not found; install LLVM $llvm's tools (Debian: apt-get install llvm-$llvm)" >&2
        exit 1
    }
done

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
# Our own packages alone are compiled anew.
cat >"$out/rustc" <<'WRAPPER'
#!/bin/sh
exec "$@" -C instrument-coverage
WRAPPER
chmod +x "$out/rustc"
export RUSTC_WORKSPACE_WRAPPER="$out/rustc" LLVM_PROFILE_FILE="$out/profile/%p-%m.profraw"
scripts/gpu-test.sh "$@" | tee "$out/log"

"llvm-profdata-$llvm" merge -sparse "$out"/profile/*.profraw -o "$out/all.profdata"
target=${CARGO_TARGET_DIR:-target}
test=$(ls -t "$target"/debug/deps/cuda-* | grep -v '\.' | head -1)
"llvm-cov-$llvm" export "$test" -object "$target/debug/nepa" -instr-profile "$out/all.profdata" --format=lcov >"$out/lcov"
python3 - "$out/lcov" <<'REPORT'
import collections, sys

lines = collections.defaultdict(dict)
for text in open(sys.argv[1]):
    kind, _, rest = text.strip().partition(":")
    if kind == "SF":
        file = rest
    elif kind == "DA":
        number, count = map(int, rest.split(",")[:2])
        lines[file][number] = max(count, lines[file].get(number, 0))
total = executed = 0
for file in sorted(lines):
    if "/pipeline/src/backend/cuda/" not in file and "/model/src/cuda/" not in file:
        continue
    name = "/".join(file.split("/")[-4:])
    missed = sorted(number for number, count in lines[file].items() if count == 0)
    total += len(lines[file])
    executed += len(lines[file]) - len(missed)
    print(f"{name}: {len(lines[file]) - len(missed)} of {len(lines[file])} lines"
          + (f"; not {', '.join(map(str, missed))}" if missed else ""))
print(f"all: {executed} of {total} lines, {100 * executed / max(total, 1):.1f} %")
sys.exit(0 if total and executed >= 0.9 * total else "error: less than 90 % of the lines were executed")
REPORT
