"""What :func:`nepa.inspect` and :func:`nepa.profile` give: a report as a mapping."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ._program import Output


class Report(Mapping[str, Any]):
    """A report of the program ``nepa``: its JSON as a mapping, its text as ``str``."""

    def __init__(self, output: Output) -> None:
        self._values = output.report
        self._text = output.text

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __str__(self) -> str:
        return self._text.rstrip("\n")

    def to_dict(self) -> dict[str, Any]:
        """The report as a dictionary that :mod:`json` can write. It is the report's own: changes
        of it change the report."""
        return self._values
