"""The program ``nepa``: where it is, and running it for :func:`nepa.inspect` and
:func:`nepa.profile`."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from . import _checks
from ._errors import DatasetError, NepaError, SettingError

_LOGGER = logging.getLogger("nepa")
_NAME = "nepa.exe" if os.name == "nt" else "nepa"
# How long the program has to end after each wish to do so, in seconds.
_END_WITHIN = 2.0
# How a log line begins where standard error is no terminal.
_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ ")
_HEADS = {"error: ": logging.ERROR, "warning: ": logging.WARNING}
_DETAIL = re.compile(r"(debug|trace) [\w:]+: ")
# Exit code of a command line that is not understood.
_MISUSED = 2


class Output(NamedTuple):
    """What the program has given."""

    report: dict[str, Any]
    """What it wrote as JSON."""
    text: str
    """What it printed."""
    page: str
    """What it wrote as HTML; empty where none was asked for."""


def find() -> str:
    """Path of the program ``nepa``.

    Looked for in this order: the environment variable ``NEPA_PROGRAM``, the folder of programs of
    this Python (also the user's, and that of ``pip install --target``), and ``PATH``.

    Raises:
        NepaError: There is none.
    """
    named = os.environ.get("NEPA_PROGRAM")
    if named:
        program = shutil.which(named)
        if program is None:
            raise NepaError(
                f"NEPA_PROGRAM is {named!r}, where there is no program that can be run: give the "
                "path of the program nepa, or unset it"
            )
        return program
    for folder in _folders():
        program = shutil.which(_NAME, path=folder)
        if program is not None:
            return program
    program = shutil.which(_NAME)
    if program is None:
        raise NepaError(
            "there is no program nepa beside this Python and none on PATH: install the package "
            "again (pip install --force-reinstall nepa), or name the program in NEPA_PROGRAM"
        )
    return program


def _folders() -> Iterator[str]:
    yield sysconfig.get_path("scripts")
    yield sysconfig.get_path("scripts", sysconfig.get_preferred_scheme("user"))
    yield str(Path(__file__).parents[1] / "bin")


def data_flags(
    *, image_column: str | None, split: str | None, strict: bool, **paths: Any
) -> list[str]:
    """Flags of what is read, which commands share. ``paths`` are those of ``--index``, by the name
    of their parameter."""
    flags = []
    if image_column is not None:
        flags.append(f"--image-column={_checks.text('image_column', image_column)}")
    if split is not None:
        flags.append(f"--split={_checks.text('split', split)}")
    if _checks.boolean("strict", strict):
        flags.append("--strict")
    flags += [f"--index={_checks.path(*given)}" for given in paths.items() if given[1] is not None]
    return flags


def run(command: str, arguments: Sequence[str], urls: Sequence[str], *, page: bool) -> Output:
    """Runs ``nepa COMMAND`` to its end, with ``--json`` and, if asked for, ``--html``.

    Its messages are logged. Where it could write its report, it has done what it was asked, and an
    error beside that is logged, too.

    Raises:
        DatasetError: It failed, with its own message.
        SettingError: It did not understand what it was given.
        NepaError: It cannot be run, or something has ended it.
        KeyboardInterrupt: Ctrl-C; the program has ended.
    """
    with tempfile.TemporaryDirectory(prefix="nepa-") as scratch:
        folder = Path(scratch)
        report, html, printed = (folder / name for name in ("json", "html", "text"))
        line = [find(), command, *arguments, "--json", str(report)]
        if page:
            line += ["--html", str(html)]
        with printed.open("wb") as text:
            code, messages = _call([*line, "--", *urls], text)
        if not report.exists():
            raise _failure(command, code, messages)
        for message in messages:
            _LOGGER.error("%s", message)
        return Output(
            json.loads(report.read_text("utf-8")),
            printed.read_text("utf-8"),
            html.read_text("utf-8") if page else "",
        )


def _call(line: Sequence[str], output: IO[bytes]) -> tuple[int, list[str]]:
    """Its exit code and its errors; all else that it says on standard error is logged."""
    try:
        process = subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        raise NepaError(f"cannot run {line[0]}: {error.strerror}; see NEPA_PROGRAM") from error
    errors: list[str] = []
    with process:
        try:
            assert process.stderr is not None
            for level, message in messages_of(process.stderr):
                if level == logging.ERROR:
                    errors.append(message)
                else:
                    _LOGGER.log(level, "%s", message)
            return process.wait(), errors
        except BaseException:
            _end(process)
            raise


def _end(process: subprocess.Popen[str]) -> None:
    try:
        # The first signal asks it to end, the second one to leave what it is doing.
        for _ in range(2):
            process.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)
            try:
                process.wait(_END_WITHIN)
            except subprocess.TimeoutExpired:
                continue
            return
    finally:
        # Also where another Ctrl-C ends the wait. Where it has ended, nothing is killed.
        process.kill()
        process.wait()


def messages_of(lines: Iterator[str] | IO[str]) -> Iterator[tuple[int, str]]:
    """Messages with their level. The program breaks long ones into lines, and sets in those that
    go on with a message by two spaces."""
    level, message = logging.INFO, ""
    for line in lines:
        line = line.rstrip()
        goes_on = line[2:] if line.startswith("  ") else None
        if goes_on is not None and message:
            # What to do, and what is laid out by hand, stay lines of their own.
            is_own = goes_on.startswith(("tip:", "|", " "))
            message += f"\n{goes_on}" if is_own else f" {goes_on}"
            continue
        if not line:
            continue
        if message:
            yield level, message
        level, message = _parse(line)
    if message:
        yield level, message


def _parse(line: str) -> tuple[int, str]:
    line = _TIME.sub("", line, count=1)
    for head, level in _HEADS.items():
        if line.startswith(head):
            return level, line.removeprefix(head)
    return (logging.DEBUG if _DETAIL.match(line) else logging.INFO), line


def _failure(command: str, code: int, messages: Sequence[str]) -> NepaError:
    text = "\n".join(messages)
    if code < 0:
        return NepaError(f"nepa {command} was ended by signal {-code}{text and ': '}{text}")
    if not text:
        return NepaError(f"nepa {command} ended with exit code {code} and without a word")
    return SettingError(text) if code == _MISUSED else DatasetError(text)
