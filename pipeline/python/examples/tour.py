"""Runs the code of a page and writes its outputs and pictures into it.

    python tour.py ../../../docs/python-tour.md            # run, and write what comes out
    python tour.py ../../../docs/python-tour.md --check    # run, and compare

A page is Markdown. Its blocks of ```python are run from top to bottom as one program, in a
temporary folder; what a block prints stands in the block of ```text below it. A picture that a
block saves in the folder `pictures` (a variable) is written beside the page in `pictures/`. Needs
Pillow.
"""

import argparse
import contextlib
import io
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

parser = argparse.ArgumentParser(description="Runs the code of a page.")
parser.add_argument("page", type=Path)
parser.add_argument("--check", action="store_true", help="fail where an output differs; write none")

# A block of code, and the output below it, if it has one.
BLOCK = re.compile(r"```python\n(?P<code>.*?)```\n(?:\n```text\n(?P<output>.*?)```\n)?", re.DOTALL)
LARGEST_PICTURE = 100_000  # bytes


def run(text: str, page: Path, pictures: Path) -> str:
    """The page with the outputs of its code."""
    variables: dict[str, Any] = {"pictures": pictures, "__name__": page.stem}

    def run_block(block: re.Match[str]) -> str:
        line = text.count("\n", 0, block.start()) + 1
        code = "\n" * line + block["code"]  # so that errors name lines of the page
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, str(page), "exec"), variables)
        output = printed.getvalue()
        if output and block["output"] is None:
            raise SystemExit(f"{page}:{line}: prints, and no block of ```text is below it")
        below = f"\n```text\n{output}```\n" if block["output"] is not None else ""
        return f"```python\n{block['code']}```\n{below}"

    return BLOCK.sub(run_block, text)


def main() -> None:
    args = parser.parse_args()
    page = args.page.resolve()
    text = page.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder) / "pictures"
        pictures.mkdir()
        here = os.getcwd()
        os.chdir(folder)
        try:
            ran = run(text, page, pictures)
        finally:
            os.chdir(here)
        for picture in sorted(pictures.iterdir()):
            if picture.stat().st_size > LARGEST_PICTURE:
                raise SystemExit(f"{picture.name} has more than {LARGEST_PICTURE:,} bytes")
            if f"pictures/{picture.name}" not in text:
                raise SystemExit(f"{page} does not show pictures/{picture.name}")
        if args.check:
            if ran != text:
                raise SystemExit(f"{page} does not have the outputs of its code: run tour.py on it")
            return
        page.write_text(ran, encoding="utf-8")
        (page.parent / "pictures").mkdir(exist_ok=True)
        for picture in pictures.iterdir():
            shutil.copy(picture, page.parent / "pictures")


if __name__ == "__main__":
    main()
