#!/usr/bin/env bash
# Fuzzes the decoders and the shard reader: scripts/fuzz.sh [MINUTES a target] [TARGET...]. Needs a nightly Rust; installs cargo-fuzz if it is missing.
# NEPA_TEST_DATA names a folder with jpeg-zoo/zoo.tar.zst, odd JPEGs to start from. Findings lie in tests/fuzz/artifacts, what was learnt in tests/fuzz/corpus.
set -euo pipefail
cd "$(dirname "$0")/.."
minutes=${1:-20}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(image_header crop_decode shard)

command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
seeds=$(mktemp -d)
trap 'rm -rf "$seeds"' EXIT
cargo build --quiet --locked --workspace --bins
"${CARGO_TARGET_DIR:-target}/debug/nepa-test-seeds" "$seeds"
if [ -n "${NEPA_TEST_DATA:-}" ]; then
    # Small ones teach the fuzzer as much as large ones.
    zstd -dc "$NEPA_TEST_DATA/jpeg-zoo/zoo.tar.zst" | tar -x -C "$seeds" --one-top-level=zoo
    find "$seeds/zoo" -type f -size -16k \( -name '*.jpg' -o -name '*.jpeg' \) -exec cp -t "$seeds/image" {} +
fi

cd tests
for target in "${targets[@]}"; do
    mkdir -p "fuzz/corpus/$target"
    kind=image
    [ "$target" = shard ] && kind=shard
    for file in "$seeds/$kind"/*; do
        # The crop comes before the image.
        if [ "$target" = crop_decode ]; then { head -c 8 /dev/zero; cat "$file"; } >"fuzz/corpus/$target/seed-$(basename "$file")"
        else cp "$file" "fuzz/corpus/$target/seed-$(basename "$file")"; fi
    done
    echo "=== $target, $minutes minutes"
    cargo +nightly fuzz run "$target" -- -max_total_time=$((minutes * 60)) -rss_limit_mb=3072 -timeout=30 -max_len=65536 -print_final_stats=1 2>&1 |
        grep -vE '^#[0-9]+\s+(NEW|REDUCE|RELOAD|pulse)' | tail -15
done
