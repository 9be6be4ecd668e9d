"""``python -m nepa ARGUMENTS`` runs the program ``nepa`` of this installation."""

import os
import subprocess
import sys

from ._errors import NepaError
from ._program import find


def main() -> int:
    """Becomes the program. Comes back, with an exit code, only where that cannot be."""
    try:
        program = find()
    except NepaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    arguments = [program, *sys.argv[1:]]
    if os.name == "posix":
        os.execv(program, arguments)
    return subprocess.call(arguments)


if __name__ == "__main__":
    sys.exit(main())
