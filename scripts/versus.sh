#!/usr/bin/env bash
# Races our loader against its peers on the same images by turns and writes benchmarks/results/DATE-versus.md: scripts/versus.sh [ROUNDS].
# NEPA_TEST_DATA names a folder with imagenet-shaped/*.parquet; without it, scenes of `nepa sample-data` are read. The peers come from PyPI into a virtual environment in ~/.cache (about
# 7 GB, most of it PyTorch); spdl needs FFmpeg's libraries.
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-5}
bin="${CARGO_TARGET_DIR:-target}/release"
venv="${XDG_CACHE_HOME:-$HOME/.cache}/nepa-versus"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cargo build --locked --release --workspace --bins
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --requirement benchmarks/versus/requirements-loaders.txt
if ! command -v ffmpeg >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get install -y -qq ffmpeg >/dev/null || echo "FFmpeg could not be installed: spdl will not run" >&2
fi

if [ -n "${NEPA_TEST_DATA:-}" ]; then
    data="$NEPA_TEST_DATA/imagenet-shaped"
    what="imagenet-shaped ($(du -chL "$data"/*.parquet | tail -1 | cut -f1) of photos in the sizes of ImageNet)"
else
    data="$work/scenes"
    "$bin/nepa" sample-data "$data" --images 400 --val-images 0 >/dev/null
    what="400 scenes of \`nepa sample-data\`"
fi

report="benchmarks/results/$(date -u +%F)-versus.md"
{
    cat <<HEAD
# Our loader and its peers, $(date -u +%F)

- Device: $(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2- | xargs), $(nproc) cores, $(awk '/MemTotal/ { printf "%.0f", $2 / 1048576 }' /proc/meminfo) GiB; $(uname -sr)
- Command: \`scripts/versus.sh $rounds\`, commit $(git rev-parse --short HEAD)$([ -z "$(git status --porcelain --untracked-files=no)" ] || echo " with changes")
- Data: $what
- Load average at the start: $(cut -d' ' -f1-3 /proc/loadavg)
- Peers: $("$venv/bin/python" -m pip freeze | grep -iE '^(datago|datasets|litdata|nvidia-dali|opencv|pillow|pyarrow|s3fs|simplejpeg|spdl|torch|torchvision)[-_a-z0-9]*==' | paste -sd' ')

Random resized crop to 224 (scale 0.08 to 1), flip, normalise, f32 [3, 224, 224]. Contestants take turns, $rounds rounds; each is a process of its own. Ratios are of each round, medians of the
rounds. Whole loaders give batches of 32 with two workers; times are read from the first batch on, processor time is that of all processes of a contestant. The S3 server is ours, in memory,
in a process of its own on the same two cores, so rates by the clock are those of both. OpenCV's INTER_LINEAR does not antialias; all else but it does.
"MiB asked for" counts byte ranges; LitData asks for whole objects.

HEAD
    "$venv/bin/python" benchmarks/versus/race.py "$bin" "$data" "$rounds"
} | tee "$work/report.md"
cp "$work/report.md" "$report"
echo "written: $report" >&2
