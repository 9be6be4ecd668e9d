#!/usr/bin/env bash
# Copies parts of the Python package and its settings to where they are tested, so that nothing is written into the tree and nothing is imported
# from it: scripts/python-stage.sh FOLDER PART..., where a part is nepa, tests, examples, or library: that of the development build, for nepa.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$1
shift
debug="${CARGO_TARGET_DIR:-target}/debug"
mkdir -p "$folder"
rm -rf "${folder:?}"/{nepa,nepa-*.dist-info,tests,examples}
cp pipeline/python/pyproject.toml "$folder"
for part in "$@"; do
    if [ "$part" != library ]; then
        cp -r "pipeline/python/$part" "$folder"
        continue
    fi
    library="$debug/lib_nepa.so"
    [ -f "$library" ] || library="$debug/lib_nepa.dylib"
    if [ ! -f "$library" ]; then
        echo "error: there is no $debug/lib_nepa.so; scripts/dev-build.sh builds it" >&2
        exit 1
    fi
    ln -s "$(realpath "$library")" "$folder/nepa/_nepa.abi3.so"
    # As if it were installed: the package asks for its version.
    version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
    mkdir "$folder/nepa-$version.dist-info"
    printf 'Metadata-Version: 2.1\nName: nepa\nVersion: %s\n' "$version" >"$folder/nepa-$version.dist-info/METADATA"
done
