#!/usr/bin/env bash
# Ranks over MPI. Installs Open MPI and libclang where they are missing, and then
#   scripts/mpi.sh [test]   builds nepa with the feature `mpi` into target/debug and runs its tests with mpirun; arguments go to the test runner
#   scripts/mpi.sh build    builds it optimised into target/release/nepa
#   scripts/mpi.sh bench    measures sums over ranks; writes a report into benchmarks/results
#   scripts/mpi.sh lint     checks the code behind the feature with clippy
# The feature is the trainer's. The target folder and the dependencies are those of the builds without it, so that only the trainer, what uses it and MPI's
# own crates are compiled for it; cargo keeps both builds, and target/*/nepa is the one that was built last.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh mpi
wanted=${1:-test}
shift $(($# > 0))
case $wanted in
    test)
        options=(--locked --workspace --features nepa-tests/mpi)
        # With the test, as tests choose features of dependencies.
        cargo build "${options[@]}" --bin nepa --test mpi
        cargo test "${options[@]}" --lib -- ranks::mpi
        # Each is several processes that wait for each other.
        cargo test "${options[@]}" --test mpi -- --show-output --test-threads=1 "$@"
        ;;
    build) cargo build --locked --release --workspace --features nepa-trainer/mpi --bin nepa ;;
    bench)
        cargo build --locked --release --workspace --features nepa-benchmarks/mpi --bins
        "${CARGO_TARGET_DIR:-target}/release/report" ranks "$@"
        ;;
    lint) cargo clippy --locked --workspace --all-targets --features nepa-benchmarks/mpi,nepa-tests/mpi -- -D warnings ;;
    *)
        echo "error: scripts/mpi.sh test, build, bench or lint; not $wanted" >&2
        exit 2
        ;;
esac
