# Sourced: finds a CUDA toolkit, or fetches one, and makes what stands in for NVIDIA's libraries when a program is linked, so that it starts without
# them, too. Sets `cuda`, the beginning of a command that builds with them, and `driver`, 1 where there is one for NVIDIA GPUs.
# They are made in target/cuda/stubs, beside the outputs of the profile `cuda` in Cargo.toml, or in the folder that `stubs` names.
# CUDA_HOME names a toolkit to use; CUDA_COMPUTE_CAP the GPU's generation (default 90: H100, H200).
# shellcheck shell=bash
prefix="${XDG_CACHE_HOME:-$HOME/.cache}/nepa-cuda-13.0"

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

stubs=${stubs:-${CARGO_TARGET_DIR:-target}/cuda/stubs}
mkdir -p "$stubs/lib"
stubs=$(cd "$stubs" && pwd)
scripts/cuda-stubs.py "$stubs/lib" "$CUDA_HOME"

# CUDA_HOME leads cudarc's build script to the stand-ins in place of the toolkit's own libraries; the compiler is NVCC.
# shellcheck disable=SC2034
cuda=(env -u CUDA_PATH -u CUDA_ROOT -u CUDA_TOOLKIT_ROOT_DIR CUDA_HOME="$stubs" NEPA_CUDA_STUBS="$stubs/lib")

# Says what is needed to run it where there is a driver.
say_what_it_needs() {
    [ "$driver" -eq 0 ] || return 0
    cat <<MESSAGE
There is no NVIDIA driver on this machine. Where it is to run, a driver for CUDA 13 (580 or newer) is needed, and cuBLAS and cuRAND of
CUDA 13 (nvJPEG too, to decode on the GPU; NCCL, for several GPUs): scripts/cuda-toolkit.sh fetches them to where the program looks, 880 MB.
MESSAGE
}
