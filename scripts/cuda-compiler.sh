# Sourced: finds the CUDA compiler, or fetches it (120 MB), and sets CUDA_HOME, NVCC and PATH. Where it can be neither found nor fetched, the script
# that sources this ends well and says that it skipped what `skipped` names.
# shellcheck shell=bash
prefix="${XDG_CACHE_HOME:-$HOME/.cache}/nepa-cuda-13.0"
status=0
scripts/cuda-toolkit.sh --compiler "$prefix" || status=$?
if [ "$status" -eq 75 ]; then
    echo "SKIPPED: $skipped: there is no nvcc, and PyPI, from which it is fetched, cannot be reached"
    exit 0
fi
[ "$status" -eq 0 ] || exit "$status"
# shellcheck disable=SC1091
. "$prefix/env.sh"
