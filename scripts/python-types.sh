#!/usr/bin/env bash
# Checks the types of Python files and folders with mypy and pyright, in the folder where it is called: python-types.sh PYTHON PATH...
set -euo pipefail
python=$1
shift
"$python" -m mypy --strict "$@"
export PYRIGHT_PYTHON_IGNORE_WARNINGS=1
# The first run fetches the program from npm.
if ! version=$("$python" -m pyright --version); then
    echo "SKIPPED: the check of types by pyright, which needs the npm registry" >&2
    exit 0
fi
echo "$version"
"$python" -m pyright --pythonpath "$python" "$@"
