#!/usr/bin/env bash
# Runs every benchmark once and writes benchmarks/results/DATE-cpu.md.
# NEPA_TEST_DATA names a folder with imagenet-shaped/*.parquet; without it, scenes of `nepa sample-data` are read.
# NEPA_TORCH_PYTHON names a Python that has torch and safetensors, and NEPA_GOLDEN the golden folders, to race PyTorch as well.
set -euo pipefail
cd "$(dirname "$0")/.."
bin="${CARGO_TARGET_DIR:-target}/release"
work=$(mktemp -d)
server=""
cleanup() { [ -n "$server" ] && kill "$server" 2>/dev/null; rm -rf "$work"; }
trap cleanup EXIT

cargo build --locked --release --workspace --bins

if [ -n "${NEPA_TEST_DATA:-}" ]; then
    data="$NEPA_TEST_DATA/imagenet-shaped"
    what="imagenet-shaped ($(du -chL "$data"/*.parquet | tail -1 | cut -f1) of photos in the sizes of ImageNet)"
else
    data="$work/scenes"
    "$bin/nepa" sample-data "$data" --images 400 --val-images 0 >/dev/null
    what="400 scenes of \`nepa sample-data\`"
fi

# Pillow lives in a virtual environment outside of the tree, the same as that of scripts/check-pillow.py.
venv="${XDG_CACHE_HOME:-$HOME/.cache}/nepa-check-pillow"
python=()
if [ -x "$venv/bin/python" ] || { python3 -m venv "$venv" && "$venv/bin/python" -m pip install --quiet pillow==13.0.0 numpy pyarrow zstandard; }; then
    python=(--python "$venv/bin/python")
else
    echo "SKIPPED: the comparison with Pillow needs python3 with venv and PyPI" >&2
fi

# The S3 server is a process of its own, so that its work and memory are not counted as the loader's.
"$bin/nepa-test-s3" "$data" --bucket bench >"$work/s3.env" &
server=$!
for _ in $(seq 100); do grep -q '^ready' "$work/s3.env" && break; sleep 0.1; done
mapfile -t s3_environment < <(grep = "$work/s3.env")

report="benchmarks/results/$(date -u +%F)-cpu.md"
mkdir -p benchmarks/results
{
    cat <<HEAD
# CPU, $(date -u +%F)

- Device: $(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2- | xargs), $(nproc) cores, $(awk '/MemTotal/ { printf "%.0f", $2 / 1048576 }' /proc/meminfo) GiB; $(uname -sr)
- Command: \`make bench\`, release profile, $(rustc --version), commit $(git rev-parse --short HEAD)$([ -z "$(git status --porcelain --untracked-files=no)" ] || echo " with changes")
- Data: $what
- Load average at the start: $(cut -d' ' -f1-3 /proc/loadavg). Where other programs ran as well, wall times are too long; processor times and ratios suffer less.

## Decode and crop alone, one core

Random resized crop to 224, bilinear, flip, normalise to f32. Ours and Pillow take turns in blocks of 25 images with the same crops. Read: processor
time of the working thread (ours) or process (Pillow); the first round is not counted.
HEAD
    "$bin/decode" "$data" "${python[@]}"
    cat <<'HEAD'

## The whole loader

Same crops, batches of 32, shuffled, 2 decode threads, 3 epochs, batches thrown away. Read: processor time of the whole process (user and system); peak
memory is VmHWM. "S3" is `nepa-test-s3`, our test server, in memory, a process of its own on the same machine: it says what S3's protocol costs
the client, not what a real network does.

Times, allocations (of Rust code) and page faults are counted from the first batch on.

| from | images | images/s of one core | CPU-ms an image | images/s by the clock | peak memory, MiB | first batch after, s | allocations an image | page faults an image |
|---|---|---|---|---|---|---|---|---|
HEAD
    "$bin/loader" "$data" --name disk
    env "${s3_environment[@]}" "$bin/loader" s3://bench --name S3
    cat <<'HEAD'

## A training step

Forward, backward, clipping, AdamW and average in f32 on the same weights, pixels and rotary factors, no loader. Each contestant is a process of its own; they take
turns, a step each; median of 7 steps after a first one. "explicit" is the default engine, "tape" `train.engine = "tape"`, "PyTorch" a plain one
(`benchmarks/versus/nepa_torch.py`: scaled_dot_product_attention, fused AdamW) on as many tokens. Ratios are of each round, over the explicit engine's time. Peak memory
is the process's VmHWM. The last column is the greatest difference of a loss from the explicit engine's.
HEAD
    torch=()
    if [ -n "${NEPA_TORCH_PYTHON:-}" ]; then
        torch=(--python "$NEPA_TORCH_PYTHON")
        printf '\nPyTorch %s. ' "$("$NEPA_TORCH_PYTHON" -c 'import torch; print(torch.__version__)')"
        if [ -n "${NEPA_GOLDEN:-}" ]; then
            printf 'It agrees with the golden tensors:\n\n```text\n'
            for folder in gelu gated large_style; do
                "$NEPA_TORCH_PYTHON" benchmarks/versus/nepa_torch.py check "$NEPA_GOLDEN/$folder" | sed "s|$NEPA_GOLDEN/||"
            done
            echo '```'
        else
            echo 'Not compared with the golden tensors: NEPA_GOLDEN is not set.'
        fi
    else
        printf '\nPyTorch was not measured: NEPA_TORCH_PYTHON is not set.\n'
    fi
    cat <<'HEAD'

| model | batch / micro-batch | threads | engine | ms by the clock | CPU-ms | ratio by the clock | ratio of CPU time | peak memory, MiB | loss off by |
|---|---|---|---|---|---|---|---|---|---|
HEAD
    for recipe in benchmarks/versus/vit-ti.toml benchmarks/versus/vit-b-two-blocks.toml trainer/recipes/quickstart.toml; do
        "$bin/step" "$recipe" "${torch[@]}"
    done
    "$bin/step" benchmarks/versus/vit-ti.toml --threads 1 "${torch[@]}"
} >"$work/report.md"
cp "$work/report.md" "$report"
cat "$report"
echo "written: $report" >&2
