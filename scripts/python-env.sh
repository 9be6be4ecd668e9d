#!/usr/bin/env bash
# Prints the Python of the virtual environment NAME in ~/.cache/nepa-python, which holds the packages of these files:
# scripts/python-env.sh NAME REQUIREMENTS...
# It is made anew when a file or the version of Python has changed. PYTHON names another one than python3.
set -euo pipefail
cd "$(dirname "$0")/.."
name=$1
shift
python=${PYTHON:-python3}
[ -n "${PYTHON:-}" ] || scripts/setup.sh python3 >&2
if ! version=$("$python" -c 'import sys, venv; sys.exit(sys.version) if sys.version_info < (3, 10) else print(sys.version)'); then
    echo "error: Python 3.10 or newer with the module venv is needed, and $python is none. Install it, or name one: PYTHON=python3.12 make ..." >&2
    exit 1
fi

venv="${XDG_CACHE_HOME:-$HOME/.cache}/nepa-python/$name"
wanted="$version"$'\n'"$(cat "$@")"
if [ ! -x "$venv/bin/python" ] || [ "$(cat "$venv/installed" 2>/dev/null)" != "$wanted" ]; then
    echo "Installing the packages of $* into $venv ..." >&2
    "$python" -m venv --clear "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${@/#/--requirement=}" >&2
    echo "$wanted" >"$venv/installed"
fi
echo "$venv/bin/python"
