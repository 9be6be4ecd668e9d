#!/usr/bin/env bash
# Builds nepa with the feature `cuda`, from nothing: toolkit if there is none, stand-ins of NVIDIA's libraries, program, checks.
# The program lies in target/cuda/nepa (CARGO_TARGET_DIR in place of target) and starts on machines without a GPU too.
# With --benchmark the programs of scripts/gpu-check are built as well.
# CUDA_HOME names a toolkit to use; CUDA_COMPUTE_CAP the GPU's generation (default 90: H100, H200).
set -euo pipefail
cd "$(dirname "$0")/.."

programs=(--package nepa-trainer --bin nepa --features nepa-trainer/cuda)
if [ "${1:-}" = --benchmark ]; then
    programs+=(--package nepa-benchmarks --bin gpu --bin gpu_step --bin report --features nepa-benchmarks/cuda)
fi
max_megabytes=56
# The folder of the profile `cuda` in Cargo.toml.
target="${CARGO_TARGET_DIR:-target}/cuda"

# shellcheck source=scripts/cuda-link.sh
. scripts/cuda-link.sh

echo "Building nepa with the feature cuda (about 20 minutes on two cores the first time, 5 after a change) ..."
"${cuda[@]}" cargo build --locked --profile cuda "${programs[@]}"

nepa="$target/nepa"
fail() {
    echo "error: $nepa $*" >&2
    exit 1
}
bytes=$(stat -c %s "$nepa")
[ "$bytes" -le $((max_megabytes * 1000000)) ] || fail "has $bytes bytes, more than $max_megabytes MB"
if needed=$(readelf -d "$nepa" | grep NEEDED | grep -E 'lib(cuda|cublas|curand|nccl|nvrtc|nvjpeg|nv)'); then
    fail "needs NVIDIA's libraries to start, so it would not start without them:" "$needed"
fi
version=$("$nepa" --version) || fail "does not start"
[[ $version == *cuda* ]] || fail "was built without the feature cuda: it says $version"

echo
echo "$nepa: $version, $((bytes / 100000 / 10)).$((bytes / 100000 % 10)) MB. Use it with device = \"cuda\" in a recipe, --set device=cuda, or --device cuda."
say_what_it_needs
