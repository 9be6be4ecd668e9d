#!/usr/bin/env bash
# What can be checked of the CUDA code with a real compiler and without a GPU: all kernels compile, and the tests of pipeline/src/cuda
# run, linked with the stand-ins of NVIDIA's libraries. Fetches the compiler (110 MB) where CUDA_HOME names none.
set -euo pipefail
cd "$(dirname "$0")/.."
prefix="${XDG_CACHE_HOME:-$HOME/.cache}/nepa-cuda-13.0"

status=0
scripts/cuda-toolkit.sh --compiler "$prefix" || status=$?
if [ "$status" -eq 75 ]; then
    echo "SKIPPED: the CUDA kernels were not compiled: there is no nvcc, and PyPI, from which it is fetched, cannot be reached"
    exit 0
fi
[ "$status" -eq 0 ] || exit "$status"
# shellcheck disable=SC1091
. "$prefix/env.sh"
scripts/check-kernels.sh

stubs="$PWD/${CARGO_TARGET_DIR:-target}/cuda-stubs"
case "${CARGO_TARGET_DIR:-}" in /*) stubs="$CARGO_TARGET_DIR/cuda-stubs" ;; esac
scripts/cuda-stubs.py "$stubs/lib"
# The feature of this package alone: candle's kernels take minutes to compile, and nothing here calls them.
CUDA_HOME="$stubs" NEPA_CUDA_STUBS="$stubs/lib" \
    cargo test --locked --workspace --lib --features nepa-pipeline/cuda -- --show-output cuda::
