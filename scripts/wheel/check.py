"""Checks a wheel by its content: `check.py WHEEL MAX_LIBRARY_MB`. Prints the sizes of its parts; ends with a sentence if something is wrong.

The library must be small, and library and program must start on glibc 2.28, which `auditwheel` reads from their symbols.
"""
import os
import re
import subprocess
import sys
import zipfile


def main() -> None:
    wheel, max_mb = sys.argv[1], float(sys.argv[2])
    parts = zipfile.ZipFile(wheel).infolist()
    print(f"{os.path.basename(wheel)}, {os.path.getsize(wheel) / 1e6:.1f} MB:")
    for part in parts:
        if part.file_size > 1e6:
            print(f"  {part.filename}: {part.file_size / 1e6:.1f} MB, {part.compress_size / 1e6:.1f} MB in the wheel")
    sizes = {part.filename: part.file_size / 1e6 for part in parts}
    libraries = [size for name, size in sizes.items() if name.endswith(".so")]
    programs = [name for name in sizes if name.endswith(".data/scripts/nepa")]
    if len(libraries) != 1 or len(programs) != 1:
        sys.exit(f"error: {wheel} must hold one library and one program, and holds {', '.join(sizes)}")
    if libraries[0] > max_mb:
        sys.exit(f"error: the library has {libraries[0]:.1f} MB, more than {max_mb:.0f}; NEPA_WHEEL_PROFILE=cuda builds for size")
    shown = subprocess.run([sys.executable, "-m", "auditwheel", "show", wheel], text=True, capture_output=True, check=False)
    tag = re.search(r'"(manylinux_2_(\d+)_\w+)"', shown.stdout)
    if not tag or int(tag[2]) > 28:
        sys.exit(f"error: {wheel} is not for glibc 2.28:\n{shown.stdout}{shown.stderr}")
    print(f"  symbols of {tag[1]}")


main()
