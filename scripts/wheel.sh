#!/usr/bin/env bash
# Builds the wheel of the Python package, with the program nepa in it, into target/wheels, for Linux with glibc 2.28 or newer, and tests it as it is installed:
# scripts/wheel.sh [--cuda | x86_64 | aarch64]
# With --cuda both can use NVIDIA GPUs, the wheel lies in target/wheels/cuda, and CUDA_HOME and CUDA_COMPUTE_CAP are those of scripts/cuda-link.sh.
# maturin and zig, which links against old versions of glibc, come from PyPI into ~/.cache/nepa-python. NEPA_WHEEL_PROFILE names a profile of Cargo.toml
# (default release; cuda: for size). Another architecture than this machine's needs `rustup target add`, and is built but not tested.
set -euo pipefail
cd "$(dirname "$0")/.."
started=$SECONDS
max_library_mb=35
with_cuda=0 out=wheels arch=${1:-$(uname -m)}
if [ "$arch" = --cuda ]; then
    with_cuda=1 out=wheels/cuda arch=$(uname -m)
fi
triple="$arch-unknown-linux-gnu"
tools=$(scripts/python-env.sh wheel scripts/wheel/requirements.txt)
mkdir -p "${CARGO_TARGET_DIR:-target}"
target=$(cd "${CARGO_TARGET_DIR:-target}" && pwd)

features=() cuda=()
if [ "$with_cuda" -eq 1 ]; then
    stubs="$target/$triple/cuda-stubs"
    # shellcheck source=scripts/cuda-link.sh
    . scripts/cuda-link.sh
    # Where a shared library is asked for, zig takes no archive, but a linker script that names one. libmoe.a is of the crate candle-kernels.
    for archive in "$stubs"/lib/*.a libmoe.a; do
        archive=$(basename "$archive")
        echo "INPUT($archive)" >"$stubs/lib/${archive%.a}.so"
    done
    features=(--features cuda)
    export NEPA_WHEEL_FEATURES="--features nepa-python/cuda,nepa-trainer/cuda"
fi

data="$PWD/pipeline/python/nepa._nepa.data"
work=$(mktemp -d)
trap 'rm -rf "$work" "$data"' EXIT
rm -rf "$data"
mkdir -p "$data/scripts"

NEPA_WHEEL_CARGO=$(command -v cargo)
export NEPA_WHEEL_CARGO NEPA_WHEEL_TARGET=$triple NEPA_WHEEL_PROFILE=${NEPA_WHEEL_PROFILE:-release} NEPA_WHEEL_SCRIPTS="$data/scripts"
export NEPA_WHEEL_PROGRAM="$target/$triple/$NEPA_WHEEL_PROFILE/nepa"
scripts/first-build.sh "$triple/$NEPA_WHEEL_PROFILE" 30
interpreter=()
[ "$arch" != "$(uname -m)" ] || interpreter=(--interpreter "$tools")
# CARGO would name another cargo than the one in scripts/wheel.
"${cuda[@]}" env -u CARGO PATH="$PWD/scripts/wheel:$(dirname "$tools"):$PATH" "$tools" -m maturin build --locked --zig --compatibility manylinux_2_28 \
    "${features[@]}" --auditwheel check --profile "$NEPA_WHEEL_PROFILE" --target "$triple" "${interpreter[@]}" --out "$work/wheels" \
    --manifest-path pipeline/python/Cargo.toml
wheel=$(ls "$work"/wheels/*.whl)
"$tools" scripts/wheel/check.py "$wheel" "$max_library_mb"
mkdir -p "$target/$out"
rm -f "$target/$out"/nepa-*"_$arch.whl"
mv "$wheel" "$target/$out"
wheel="$target/$out/$(basename "$wheel")"
built=$((SECONDS - started))

if [ "$arch" != "$(uname -m)" ]; then
    echo "$wheel: built in $built s. It is for $arch, so it was not tested here."
    exit
fi

# As a user has it: an environment of its own, no Rust on the PATH, nothing of this tree to import.
tests=pipeline/python/tests
scripts/python-stage.sh "$work/run" tests examples
"${PYTHON:-python3}" -m venv "$work/venv"
grep -E '^(numpy|pyarrow|pytest)==' "$tests/requirements.txt" >"$work/requirements.txt"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$work/requirements.txt" "$wheel"
if [ -x "$target/debug/nepa-test-s3" ]; then export NEPA_TEST_S3="$target/debug/nepa-test-s3"; fi
cd "$work/run"
export PATH="$work/venv/bin:/usr/bin:/bin"
unset PYTHONPATH NEPA_PROGRAM
nepa sample-data --images 64 --val-images 0 shards >/dev/null
python -W error -c '
import nepa
for batch in nepa.Loader("shards", batch_size=32, framework="numpy"):
    print("a batch", batch.images.shape, batch.images.dtype)
'
[ "$(nepa --version)" = "$(python -m nepa --version)" ] || { echo "error: nepa and python -m nepa are not one program" >&2; exit 1; }
python -m pytest -rs tests

echo "$wheel: built in $built s, tested in $((SECONDS - started - built)) s. pip install it."
if [ "$with_cuda" -eq 1 ]; then say_what_it_needs; fi
