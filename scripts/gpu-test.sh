#!/usr/bin/env bash
# Runs everything that is written for CUDA on a machine without a GPU: stand-ins play the driver, cuBLASLt, nvJPEG and NCCL (tests/standins).
# Fetches the CUDA compiler (120 MB) where CUDA_HOME names none. Arguments go to the test runner.
set -euo pipefail
cd "$(dirname "$0")/.."
skipped="nothing for CUDA was run"
# shellcheck source=scripts/cuda-compiler.sh
. scripts/cuda-compiler.sh

target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target/cuda-stubs/lib"
stubs=$(cd "$target/cuda-stubs" && pwd)
scripts/cuda-stubs.py "$stubs/lib" "$CUDA_HOME"

# Our kernels by nvcc; candle's, which take minutes and which nothing here calls, are left empty. The setting is lint.sh's, for its reason.
standin="$PWD/scripts/cuda-standin"
cuda=(env -u CUDA_PATH -u CUDA_ROOT -u CUDA_TOOLKIT_ROOT_DIR NEPA_NVCC="$NVCC" NVCC="$standin/bin/nvcc" PATH="$standin/bin:$PATH"
    CUDA_HOME="$stubs" NEPA_CUDA_STUBS="$stubs/lib" CUDA_COMPUTE_CAP=90)
options=(--locked --workspace --exclude nepa-interleavings --features "nepa-trainer/cuda,nepa-benchmarks/cuda,nepa-tests/cuda,nepa-python/cuda"
    --config 'profile.dev.package.candle-kernels.codegen-units=1')
# With the test, as tests choose features of dependencies; of the programs the one that it runs. The interleavings are the pipeline compiled once
# more, and nothing of them runs here.
"${cuda[@]}" cargo build "${options[@]}" --lib --bin nepa --test cuda
"${cuda[@]}" cargo test "${options[@]}" --test cuda -- --show-output "$@"
