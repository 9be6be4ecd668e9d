#!/usr/bin/env bash
# Compiles all CUDA kernels with NVIDIA's compiler and checks what they need of a GPU. Fetches the compiler (110 MB) where CUDA_HOME names none.
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
