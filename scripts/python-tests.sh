#!/usr/bin/env bash
# Tests the Python package on the development build, without a wheel: types, then pytest, whose counts make the closing line.
# Its packages (mypy, numpy, pyarrow, pyright, pytest) lie in ~/.cache/nepa-python. Arguments go to pytest. NEPA_TEST_DATA as in scripts/test.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/dev-build.sh
python=$(scripts/python-env.sh tests pipeline/python/tests/requirements.txt)

target=$(cd "${CARGO_TARGET_DIR:-target}" && pwd)
stage="$target/python"
export NEPA_PROGRAM="$target/debug/nepa" NEPA_TEST_S3="$target/debug/nepa-test-s3" PYTHONPATH="$stage"
scripts/python-stage.sh "$stage" nepa library tests examples
log=$(mktemp)
trap 'rm -f "$log"' EXIT
sum=$PWD/scripts/sum-tests.sh types=$PWD/scripts/python-types.sh

cd "$stage"
# Examples of what is not installed here are checked by scripts/test-torch.sh.
large='accelerate|datasets|jax|lightning|timm|torch|torchdata|torchvision|transformers'
mapfile -t examples < <(grep --recursive --include='*.py' --files-without-match -E "^\s*(import|from) ($large)\b" examples)
status=0
"$types" "$python" nepa "${examples[@]}" || status=1
"$python" -m pytest -rs "$@" 2>&1 | tee "$log" || status=$?

echo
"$sum" "$log"
exit "$status"
