#!/usr/bin/env bash
# Tests the Python package with PyTorch, what is built on it, and JAX, and the types of all examples. Installs 5 GB from PyPI into ~/.cache/nepa-python.
# Takes the newest wheel of `make wheel`, or the development build where there is none. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
tests=pipeline/python/tests
python=$(scripts/python-env.sh torch "$tests/requirements.txt" "$tests/requirements-torch.txt")
mkdir -p "${CARGO_TARGET_DIR:-target}"
target=$(cd "${CARGO_TARGET_DIR:-target}" && pwd)
stage="$target/python-torch"
scripts/python-stage.sh "$stage/types" nepa examples

"$python" -m pip uninstall --quiet --yes nepa 2>/dev/null
wheel=$(ls -t "$target"/wheels/nepa-*"_$(uname -m).whl" 2>/dev/null | head -1 || true)
if [ -n "$wheel" ]; then
    echo "Testing $wheel"
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps "$wheel"
    scripts/python-stage.sh "$stage/run" tests examples
else
    echo "Testing the development build, as there is no wheel in $target/wheels (make wheel)"
    scripts/dev-build.sh
    export NEPA_PROGRAM="$target/debug/nepa" PYTHONPATH="$stage/run"
    scripts/python-stage.sh "$stage/run" nepa library tests examples
fi
if [ -x "$target/debug/nepa-test-s3" ]; then export NEPA_TEST_S3="$target/debug/nepa-test-s3"; fi

status=0
(cd "$stage/types" && "$OLDPWD/scripts/python-types.sh" "$python" nepa examples) || status=1
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# Warnings of other packages are no failures.
(cd "$stage/run" && "$python" -m pytest -rs -o filterwarnings=default tests/test_torch_*.py tests/test_jax_*.py "$@") 2>&1 | tee "$log" || status=$?

echo
scripts/sum-tests.sh "$log"
exit "$status"
