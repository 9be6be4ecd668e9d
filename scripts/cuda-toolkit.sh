#!/usr/bin/env bash
# Sets up what compiles for CUDA 13.0, without a GPU, a driver or root:   scripts/cuda-toolkit.sh [--compiler] [PREFIX]
#
# Afterwards `source PREFIX/env.sh` sets CUDA_HOME, NVCC and PATH. PREFIX is below ~/.cache (XDG_CACHE_HOME) if not given.
#   default      compiler, headers, cuBLAS, cuRAND, NCCL, NVRTC, nvJPEG   880 MB to fetch, 1.4 GB on disk
#   --compiler   what compiling and checking the kernels need             120 MB to fetch, 0.3 GB on disk
# Where CUDA_HOME names a toolkit, that one is taken and nothing is fetched. Otherwise the toolkit comes from NVIDIA's wheels on
# PyPI, in the versions that PyTorch 2.11 for CUDA 13.0 depends on. What is there already is kept.
# Exit code 75: the wheels cannot be fetched from here.
set -euo pipefail

fail() {
    printf 'error: %s\n' "$@" >&2
    exit 1
}

libraries=1
if [ "${1:-}" = --compiler ]; then
    libraries=0
    shift
fi
case "${1:-}" in -*) fail "unknown option $1; usage: scripts/cuda-toolkit.sh [--compiler] [PREFIX]" ;; esac
prefix=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/nepa-cuda-13.0}
[ "$(uname -sm)" = "Linux x86_64" ] ||
    fail "the CUDA build is made for Linux on x86-64; this is $(uname -sm). Build without it: make build"
command -v c++ >/dev/null || fail "nvcc needs a C++ compiler, and c++ was not found." "Debian, Ubuntu: apt-get install g++"
mkdir -p "$prefix/bin"
prefix=$(cd "$prefix" && pwd)
own="$prefix/site/nvidia/cu13"

wheels=(
    nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 # nvcc, ptxas; cicc, libdevice; crt/*.h
    nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85                  # the runtime and its headers; nv/target
    nvidia-cuda-nvdisasm==13.2.78                                           # reads cubins; there is no wheel of 13.0
    nvidia-nvjpeg==13.0.1.86                                                # its header is held to what our bindings declare
)
if [ "$libraries" -eq 1 ]; then
    wheels+=(nvidia-cuda-nvrtc==13.0.88 nvidia-cublas==13.1.0.3 nvidia-curand==10.4.0.35 nvidia-nccl-cu13==2.28.9)
fi

# Whether all wheels are there, perhaps with others.
complete() {
    local wheel
    for wheel in "${wheels[@]}"; do grep -qxF "$wheel" "$prefix/wheels" 2>/dev/null || return 1; done
    [ -x "$own/bin/nvcc" ]
}

fetch() {
    local python=${PYTHON:-python3} new="$prefix/site.new" log="$prefix/pip.log"
    command -v "$python" >/dev/null ||
        fail "python3 with pip is needed to fetch the CUDA toolkit's wheels, and $python was not found." \
            "Install it (Debian, Ubuntu: apt-get install python3 python3-venv), or set CUDA_HOME to a CUDA 13 toolkit."
    if ! "$python" -m pip --version >/dev/null 2>&1; then
        "$python" -m venv "$prefix/venv" >/dev/null 2>&1 && "$prefix/venv/bin/python" -m pip --version >/dev/null 2>&1 ||
            fail "$python has neither pip nor venv." \
                "Install one (Debian, Ubuntu: apt-get install python3-venv), or set CUDA_HOME to a CUDA 13 toolkit."
        python="$prefix/venv/bin/python"
    fi
    echo "Fetching the CUDA 13.0 toolkit from PyPI into $prefix ($([ "$libraries" -eq 1 ] && echo 880 || echo 120) MB) ..." >&2
    rm -rf "$new"
    # One call for all: a second one would not add to the folder nvidia/ that they share.
    if ! "$python" -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --retries 2 --timeout 20 \
        --no-deps --no-compile --only-binary=:all: --target "$new" "${wheels[@]}" 2>"$log"; then
        cat "$log" >&2
        if grep -qiE 'NewConnectionError|name resolution|ConnectTimeout|ReadTimeout|ConnectionError|ProxyError|unreachable' "$log"; then
            echo "error: PyPI cannot be reached from here (above). With a mirror, set PIP_INDEX_URL; or set CUDA_HOME to a CUDA 13 toolkit." >&2
            exit 75
        fi
        fail "pip could not install the CUDA toolkit (above)."
    fi
    rm -rf "$prefix/site" "$prefix/wheels" "$log"
    mv "$new" "$prefix/site"
    printf '%s\n' "${wheels[@]}" >"$prefix/wheels"
}

home=${CUDA_HOME:-}
if [ -z "$home" ] || [ "$home" -ef "$own" ]; then
    complete || fetch
    home=$own
    # Where a program that was linked with scripts/cuda-stubs.py looks for the libraries.
    ln -sfn site/nvidia/cu13/lib "$prefix/lib"
    if [ "$libraries" -eq 1 ]; then ln -sfn ../../nccl/lib/libnccl.so.2 "$own/lib/libnccl.so.2"; fi
elif [ ! -x "$home/bin/nvcc" ]; then
    fail "CUDA_HOME is $home, and $home/bin/nvcc is not there." \
        "Set it to a CUDA 13 toolkit, or unset it: the toolkit is then fetched from PyPI."
fi
release=$("$home/bin/nvcc" --version | sed -n 's/.*release \([0-9.]*\),.*/\1/p')
case "$release" in
13.[0-4]) ;;
*) fail "$home/bin/nvcc is of CUDA ${release:-(unknown)}; 13.0 to 13.4 are needed. Unset CUDA_HOME: 13.0 is then fetched from PyPI." ;;
esac

# Nine tenths of the time for candle's kernels go into quantised and mixture-of-experts ones, which nothing here calls:
# they are compiled with the least optimisation, and packed (6 MB instead of 40 in the program).
cat >"$prefix/bin/nvcc.new" <<WRAPPER
#!/bin/sh
nvcc='$home/bin/nvcc'
case "\$*" in
*src/mmq_gguf/* | *src/moe/* | *src/mmvq_gguf.cu* | *src/quantized.cu*) exec "\$nvcc" -Ofc max -Xfatbin -compress-all "\$@" ;;
esac
exec "\$nvcc" "\$@"
WRAPPER
chmod +x "$prefix/bin/nvcc.new"
mv "$prefix/bin/nvcc.new" "$prefix/bin/nvcc"
cat >"$prefix/env.sh" <<ENV
export CUDA_HOME='$home' NVCC='$prefix/bin/nvcc' PATH='$prefix/bin:$home/bin':"\$PATH"
export CUDA_COMPUTE_CAP=\${CUDA_COMPUTE_CAP:-90} CUDAFORGE_THREADS=\${CUDAFORGE_THREADS:-\$(nproc)}
ENV

# One kernel with the headers that ours include, so that a broken toolkit is found here and not in the middle of a build.
probe=$(mktemp -d)
trap 'rm -rf "$probe"' EXIT
printf '#include <cuda_bf16.h>\n__global__ void k(__nv_bfloat16 *p) { *p = __float2bfloat16(1.f); }\n' >"$probe/k.cu"
"$prefix/bin/nvcc" -arch=compute_90 -ptx -o "$probe/k.ptx" "$probe/k.cu" || fail "the toolkit in $home cannot compile a kernel (above)."
echo "CUDA $release in $home; source $prefix/env.sh" >&2
