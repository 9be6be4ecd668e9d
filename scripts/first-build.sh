#!/usr/bin/env bash
# Says how long a build will take, where nothing is built yet: scripts/first-build.sh PROFILE_FOLDER CPU_MINUTES
set -euo pipefail
cd "$(dirname "$0")/.."
folder="${CARGO_TARGET_DIR:-target}/$1"
[ -d "$folder/deps" ] && exit 0
cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
# The last crates wait for each other, so that many cores do not help all the time.
echo "The first build takes about $(($2 / cores + 2)) minutes on $cores cores ($2 minutes of processor time); later ones take seconds to a minute."
