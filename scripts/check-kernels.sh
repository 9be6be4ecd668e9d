#!/usr/bin/env bash
# Compiles every CUDA kernel with NVIDIA's compiler, warnings as errors, and holds what each needs of an H100 (registers, spills,
# shared memory, blocks an SM, instructions) to model/src/cuda/kernels/budgets.tsv; --update rewrites that file. Also holds nvJPEG's
# header to what our bindings declare.
# Needs nvcc (NVCC names it, else the PATH is searched) but no GPU. Without nvcc the kernels are still compiled and run by the tests, on the CPU.
set -euo pipefail
cd "$(dirname "$0")/.."

update=()
case "${1:-}" in
"") ;;
--update) update=(--update) ;;
*)
    echo "error: unknown option $1; usage: scripts/check-kernels.sh [--update]" >&2
    exit 1
    ;;
esac
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

# A tool of the toolkit: beside nvcc, in CUDA_HOME or on the path; nothing where there is none.
tool() {
    local place
    for place in "$(dirname "$nvcc")/$1" "${CUDA_HOME:-/nowhere}/bin/$1" "$(command -v "$1" || true)"; do
        if [ -x "$place" ]; then
            echo "$place"
            return
        fi
    done
}
nvdisasm=$(tool nvdisasm) ptxas=$(tool ptxas)

folders=(pipeline/src/backend/cuda/kernels model/src/cuda/kernels)
mapfile -t kernels < <(find "${folders[@]}" -name '*.cu' | sort)
if [ "${#kernels[@]}" -eq 0 ]; then
    echo "error: there is no kernel in ${folders[*]}." >&2
    exit 1
fi

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
flags=(-std=c++17 -O3 -Werror all-warnings)
for kernel in "${kernels[@]}"; do
    name=$out/$(basename "$kernel" .cu)
    "$nvcc" "${flags[@]}" -arch=compute_90 -ptx -o "$name.ptx" "$kernel"
    [ -n "$ptxas" ] || continue
    if ! "$nvcc" "${flags[@]}" -arch=sm_90 -cubin -Xptxas -v -o "$name.cubin" "$kernel" >"$name.log" 2>&1; then
        cat "$name.log" >&2
        exit 1
    fi
    # The other code that scripts/cuda_kernels.rs makes.
    "$nvcc" "${flags[@]}" -arch=sm_80 -cubin -o "$out/kernel.cubin" "$kernel"
    [ -z "$nvdisasm" ] || "$nvdisasm" -c "$name.cubin" >"$name.sass"
done
# Beside nvcc's folder or in CUDA_HOME.
include=""
for place in "$(dirname "$nvcc")/../include" "${CUDA_HOME:-/nowhere}/include"; do
    [ ! -f "$place/nvjpeg.h" ] || include=$place
done
if [ -n "$include" ]; then
    cc -std=c11 -Wall -Werror -fsyntax-only -isystem "$include" scripts/nvjpeg_abi.c
    echo "nvjpeg.h in $include is what nvjpeg-sys declares."
else
    echo "SKIPPED: nvJPEG's header was not found, and so not compared with the bindings."
fi

echo "${#kernels[@]} file(s) of kernels compile for compute capability 9.0 and 8.0."
if [ -z "$ptxas" ]; then
    echo "NOT compared with the budget: ptxas, which counts registers and shared memory, was not found beside nvcc."
    exit 0
fi
release=$("$nvcc" --version | sed -n 's/.*release \([0-9.]*\),.*/\1/p')
"${PYTHON:-python3}" scripts/kernel_budgets.py "$out" model/src/cuda/kernels/budgets.tsv --nvcc-release "$release" "${update[@]}"
