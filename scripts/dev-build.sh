#!/usr/bin/env bash
# Builds all that the tests need, in the development profile: programs, tests, and the library of the Python package, which no other target asks for.
# In one command, as tests choose features of dependencies (tokio's clock): by themselves, the programs would take those dependencies built once more.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/first-build.sh debug 20
cargo build --locked --workspace --lib --bins --tests
