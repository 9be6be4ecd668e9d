#!/usr/bin/env bash
# Checks the types of Python files and folders with mypy and pyright, in the folder where it is called: python-types.sh PYTHON PATH...
set -euo pipefail
python=$1
shift
status=0
"$python" -m mypy --strict "$@" || status=1
export PYRIGHT_PYTHON_IGNORE_WARNINGS=1
# The first run fetches the program from npm.
if ! version=$("$python" -m pyright --version); then
    echo "SKIPPED: the check of types by pyright, which needs the npm registry" >&2
    exit "$status"
fi
echo "$version"
"$python" -m pyright --pythonpath "$python" "$@" || status=1
exit "$status"
