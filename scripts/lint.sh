#!/usr/bin/env bash
# Formatting, clippy with warnings denied, and the CUDA fence: the default build must not hold a CUDA crate.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo fmt --all --check
cargo clippy --locked --workspace --all-targets -- -D warnings
if cargo tree --locked --workspace --edges normal,build | grep -E '\b(cudarc|candle-kernels|nvjpeg-sys)\b'; then
    echo "error: the default build holds a CUDA crate (above); it must stay behind the feature 'cuda'." >&2
    exit 1
fi
echo "The default build is free of CUDA."
