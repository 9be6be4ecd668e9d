#!/usr/bin/env bash
# Installs the system packages that the build needs, where it can; says what is missing where it cannot. What some tests need on top is named:
# scripts/setup.sh [python3] [node] [mpi]
set -euo pipefail

if ! command -v cargo >/dev/null; then
    echo "error: cargo, the Rust build tool, was not found." >&2
    echo "Install Rust with rustup (https://rustup.rs), open a new shell, and run this again." >&2
    exit 1
fi

missing=()
command -v cmake >/dev/null || missing+=(cmake)
command -v nasm >/dev/null || missing+=(nasm)
# C for libjpeg-turbo, C++ for the tests of the CUDA kernels.
{ command -v cc && command -v c++; } >/dev/null || missing+=(cc)
for tool in "$@"; do
    case $tool in
        python3) python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv) ;;
        node) { command -v node && command -v npm; } >/dev/null || missing+=(nodejs npm) ;;
        mpi)
            { command -v mpicc && command -v mpirun; } >/dev/null || missing+=(libopenmpi-dev openmpi-bin)
            # For bindgen, which looks there, too.
            { [ -n "${LIBCLANG_PATH:-}" ] || command -v llvm-config || compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' ||
                compgen -G '/usr/lib*/libclang*.so*'; } >/dev/null || missing+=(libclang-dev)
            ;;
    esac
done
[ ${#missing[@]} -eq 0 ] && exit 0

echo "Needed: ${missing[*]/#cc/a C and C++ compiler}"
packages=("${missing[@]/#cc/build-essential}")
sudo=()
if [ "$(id -u)" -ne 0 ]; then
    # -n: never stop a script to ask for a password.
    if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then sudo=(sudo -n); else sudo=(false); fi
fi
if command -v apt-get >/dev/null && [ "${sudo[*]:-}" != false ]; then
    echo "Installing ${packages[*]} with apt-get ..."
    "${sudo[@]}" apt-get update -qq && "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${packages[@]}"
    exit 0
fi
cat >&2 <<MESSAGE
error: cannot install them from here (no apt-get, or no root and no password-less sudo). Install them by hand, then run this again:
  Debian, Ubuntu:  sudo apt-get install ${packages[*]}
  Fedora:          sudo dnf install cmake nasm gcc gcc-c++ (for MPI: openmpi-devel clang-devel)
  Arch:            sudo pacman -S cmake nasm gcc (for MPI: openmpi clang)
  macOS:           xcode-select --install; brew install cmake nasm (for MPI: open-mpi llvm)
MESSAGE
exit 1
