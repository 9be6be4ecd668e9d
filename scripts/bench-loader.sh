#!/usr/bin/env bash
# What the loader does beside its rate: start-up by the number of shards, a slow store, memory over a million samples. Writes benchmarks/results/DATE-loader.md.
# NEPA_TEST_DATA names a folder with imagenet-shaped/*.parquet and cifar10/*.parquet; without it, scenes of `nepa sample-data` are read.
set -euo pipefail
cd "$(dirname "$0")/.."
bin="${CARGO_TARGET_DIR:-target}/release"
work=$(mktemp -d)
servers=()
cleanup() { [ ${#servers[@]} -eq 0 ] || kill "${servers[@]}" 2>/dev/null || true; rm -rf "$work"; }
trap cleanup EXIT

cargo build --locked --release --workspace --bins
photos="$work/scenes" small="$work/scenes"
if [ -n "${NEPA_TEST_DATA:-}" ]; then
    photos="$NEPA_TEST_DATA/imagenet-shaped" small="$NEPA_TEST_DATA/cifar10"
else
    "$bin/nepa" sample-data "$work/scenes" --images 400 --val-images 0 >/dev/null
fi
shard=$(find -L "$photos" -name '*.parquet' | sort | head -1)

# serve NAME OPTION...: a server in a process of its own; its environment goes into the array NAME.
serve() {
    local -n environment=$1
    local file="$work/$1.env"
    shift
    "$bin/nepa-test-s3" "$work/copies" --bucket bench "$@" >"$file" 2>/dev/null &
    servers+=($!)
    for _ in $(seq 100); do grep -q '^ready' "$file" && break; sleep 0.1; done
    mapfile -t environment < <(grep = "$file")
}
# More than a window holds, so that windows follow each other as in a real data set.
mkdir "$work/copies"
for copy in $(seq 10); do
    for file in "$photos"/*.parquet; do ln -s "$(realpath "$file")" "$work/copies/$copy-$(basename "$file")"; done
done
serve fast
serve slow --latency-ms 100 --mbps 85

report="benchmarks/results/$(date -u +%F)-loader.md"
{
    cat <<HEAD
# The loader beside its rate, $(date -u +%F)

- Device: $(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2- | xargs), $(nproc) cores, $(awk '/MemTotal/ { printf "%.0f", $2 / 1048576 }' /proc/meminfo) GiB; $(uname -sr)
- Command: \`scripts/bench-loader.sh\`, commit $(git rev-parse --short HEAD)$([ -z "$(git status --porcelain --untracked-files=no)" ] || echo " with changes")
- Load average at the start: $(cut -d' ' -f1-3 /proc/loadavg)

## A slow store

The whole loader from S3 (our server, in memory, a process of its own), ten copies of the photos twice, windows of 64 MiB, 2 decode threads, by turns: answers at once, and answers with 100 ms to the first byte
and 85 MB/s a connection. Times, allocations (of Rust code) and page faults are counted from the first batch on.

| store | images | images/s of one core | CPU-ms an image | images/s by the clock | peak memory, MiB | first batch after, s | allocations an image | page faults an image |
|---|---|---|---|---|---|---|---|---|
HEAD
    for _ in 1 2 3; do
        env "${fast[@]}" "$bin/loader" s3://bench --epochs 2 --name "answers at once"
        env "${slow[@]}" "$bin/loader" s3://bench --epochs 2 --name "100 ms, 85 MB/s"
    done
    printf '\n## Start-up\n\nTime to the first batch of 64 crops to 224, by the number of shards (copies of one). The server is in the same process and shares its two cores. Medians of 3.\n'
    "$bin/startup" "$shard"
    printf '\n## Memory over many samples\n\nBatches of 64 small images, crops to 8, 2 decode threads; a line is fitted to the resident memory after the first quarter. glibc gives each thread an arena of its own; with one\narena (second row) memory does not wander between them.\n\n'
    "$bin/soak" "$small" --samples 3000000
    MALLOC_ARENA_MAX=1 "$bin/soak" "$small" --samples 3000000 | tail -1
} >"$work/report.md"
cp "$work/report.md" "$report"
cat "$report"
echo "written: $report" >&2
