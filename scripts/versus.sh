#!/usr/bin/env bash
# Races our loader against its peers on the same images by turns and writes benchmarks/results/DATE-versus.md: scripts/versus.sh [ROUNDS].
# NEPA_TEST_DATA names a folder with imagenet-shaped/*.parquet; without it, scenes of `nepa sample-data` are read. The peers come from PyPI into a virtual environment in ~/.cache (about
# 7 GB, most of it PyTorch); spdl needs FFmpeg's libraries.
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-3}
bin="${CARGO_TARGET_DIR:-target}/release"
venv="${XDG_CACHE_HOME:-$HOME/.cache}/nepa-versus"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cargo build --locked --release --workspace --bins
# Its pixels are compared with the peers'.
cargo build --locked --release --package nepa-pipeline --example render_dump
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
requirements=benchmarks/versus/requirements-loaders.txt
if ! "$venv/bin/python" -m pip install --quiet --requirement "$requirements"; then
    # One peer that cannot be had must not stop the others; its row will say that it is missing.
    grep -v '^#' "$requirements" | while read -r package; do
        "$venv/bin/python" -m pip install --quiet "$package" || echo "$package could not be installed" >&2
    done
fi
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

Random resized crop to 224 (scale 0.08 to 1), bilinear, flip, normalise, f32 [3, 224, 224]. Contestants take turns, $rounds rounds; each is a process of its own. Ratios are of each round,
medians of the rounds.

One thread: the first 200 images, into memory that is used again (DALI has its own); crops are drawn before the clock runs, ours by our own stream, DALI's inside its decoder and within the time. The last column is of 50 images with the same
crops: how far the picture is from Pillow's (\`benchmarks/versus/same_output.py\`). OpenCV's INTER_LINEAR does not antialias, so it does less than the others. FFmpeg moves a crop to even pixels
where chroma is subsampled, hence spdl's difference; exact crops would be slower.

Whole loaders: batches of 32, two workers, one pass over eight copies of the shards. Rates and processor time (user and system, of all processes of a contestant) are read from the first batch
on; what was prepared behind the first batch, at most some batches of a hundred, is not in them. Memory is ours at its peak (VmHWM) and that of the peers by samples (PSS), which may
miss a peak. The first batch is timed from the start of our program and from before the import of a peer. Left out: the 5 s that Hugging Face's datasets sleeps at the end of each pass.
LitData's index of the shards is made in the first round and found there later. The S3 server is ours, in memory, in a process of its own on the same cores, so rates by the clock are
those of both.

HEAD
    "$venv/bin/python" benchmarks/versus/race.py "$bin" "$data" "$rounds"
} | tee "$work/report.md"
cp "$work/report.md" "$report"
echo "written: $report" >&2
