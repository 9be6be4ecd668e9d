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
prefix="${XDG_CACHE_HOME:-$HOME/.cache}/nepa-cuda-13.0"
# The folder of the profile `cuda` in Cargo.toml.
target="${CARGO_TARGET_DIR:-target}/cuda"

# The libraries are needed where the program runs on a GPU, and that is where there is a driver.
driver=0
if [ -e /dev/nvidiactl ] || ldconfig -p 2>/dev/null | grep -q 'libcuda\.so\.1 '; then driver=1; fi
if [ "$driver" -eq 1 ]; then
    scripts/cuda-toolkit.sh "$prefix"
else
    scripts/cuda-toolkit.sh --compiler "$prefix"
fi
# shellcheck disable=SC1091
. "$prefix/env.sh"

mkdir -p "$target/stubs/lib"
stubs=$(cd "$target/stubs" && pwd)
cudart=""
for folder in lib64 lib targets/x86_64-linux/lib; do
    if [ -f "$CUDA_HOME/$folder/libcudart_static.a" ]; then cudart="$CUDA_HOME/$folder/libcudart_static.a"; fi
done
if [ -z "$cudart" ]; then
    echo "error: $CUDA_HOME has no libcudart_static.a (looked in lib64, lib and targets/x86_64-linux/lib)" >&2
    exit 1
fi
scripts/cuda-stubs.py "$stubs/lib" --cudart "$cudart"

echo "Building nepa with the feature cuda (about 20 minutes on two cores the first time, 5 after a change) ..."
# CUDA_HOME leads cudarc's build script to the stand-ins in place of the toolkit's own libraries; the compiler is NVCC.
env -u CUDA_PATH -u CUDA_ROOT -u CUDA_TOOLKIT_ROOT_DIR CUDA_HOME="$stubs" NEPA_CUDA_STUBS="$stubs/lib" \
    cargo build --locked --profile cuda "${programs[@]}"

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
if [ "$driver" -eq 0 ]; then
    cat <<MESSAGE
There is no NVIDIA driver on this machine. Where it is to run, a driver for CUDA 13 (580 or newer) is needed, and cuBLAS and cuRAND of
CUDA 13 (nvJPEG too, to decode on the GPU; NCCL, for several GPUs): scripts/cuda-toolkit.sh fetches them to where the program looks, 880 MB.
MESSAGE
fi
