#!/usr/bin/env bash
# Compiles every CUDA kernel with NVIDIA's compiler, warnings as errors, and lists what each needs of an H100 (registers, shared memory, spills).
# Needs nvcc (NVCC names it, else the PATH is searched) but no GPU. Without nvcc the kernels are still compiled and run by the tests, on the CPU.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -n "${NVCC:-}" ]; then
    nvcc=$NVCC where="NVCC=$NVCC is no program"
else
    nvcc=nvcc where="NVCC is not set and nvcc is not on PATH"
fi
if ! nvcc=$(command -v "$nvcc"); then
    echo "error: nvcc, the CUDA compiler, was not found: $where." >&2
    echo "scripts/cuda-toolkit.sh --compiler fetches one; then source the env.sh that it names, and run this again." >&2
    exit 1
fi

folders=(pipeline/src/cuda/kernels model/src/cuda/kernels)
mapfile -t kernels < <(find "${folders[@]}" -name '*.cu' | sort)
if [ "${#kernels[@]}" -eq 0 ]; then
    echo "error: there is no kernel in ${folders[*]}." >&2
    exit 1
fi

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
flags=(-std=c++17 -O3 -Werror all-warnings)
for kernel in "${kernels[@]}"; do
    echo "$kernel"
    "$nvcc" "${flags[@]}" -arch=compute_90 -ptx -o "$out/kernel.ptx" "$kernel"
    if ! command -v ptxas >/dev/null && ! [ -x "$(dirname "$nvcc")/ptxas" ]; then
        echo "  compiled to PTX; ptxas, which would list registers and shared memory, was not found beside nvcc"
        continue
    fi
    if ! "$nvcc" "${flags[@]}" -arch=sm_90 -cubin -Xptxas -v -o "$out/kernel.cubin" "$kernel" >"$out/log" 2>&1; then
        cat "$out/log" >&2
        exit 1
    fi
    # "Compiling entry function 'NAME' for", then "... bytes spill stores ..." and "Used N registers, ..." of it.
    awk '/Compiling entry function/ { split($0, part, "\047"); name = part[2] }
         /spill stores/ { spill = $5 + $9 }
         /Used .* registers/ { sub(/.*Used /, ""); printf "  %-24s %s%s\n", name, $0, spill ? ", SPILLS " spill " bytes" : "" }' "$out/log"
done
echo "${#kernels[@]} file(s) of kernels compile for compute capability 9.0."
