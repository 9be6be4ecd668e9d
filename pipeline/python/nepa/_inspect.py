"""Looking at a data set before it is read: :func:`inspect`."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

from . import _checks
from ._program import data_flags, run
from ._report import Report


class Inspection(Report):
    """What a data set holds. A mapping; its keys, such as ``"rows"``, ``"labels"`` and
    ``"sample"``, are explained in ``docs/inspect.md``. Shown, it is what ``nepa inspect`` prints.
    """

    @property
    def warnings(self) -> list[str]:
        """What may be wrong with the data set and what to do, the most serious first."""
        warnings: list[str] = self["warnings"]
        return warnings

    @property
    def failed(self) -> list[str]:
        """Row groups of the sample that cannot be read, with place and reason."""
        failed: list[str] = self["sample"]["failed"]
        return failed

    def __repr__(self) -> str:
        return "\n".join([str(self), *(f"error: {failed}" for failed in self.failed)])


def inspect(
    urls: str | PathLike[str] | Sequence[str | PathLike[str]],
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    split: str | None = None,
    strict: bool = False,
    samples: int = 256,
    seed: int = 1337,
    write_index: str | PathLike[str] | None = None,
) -> Inspection:
    """Says what a data set holds, how it will be read and what may be wrong with it.

    Reads all footers and a seeded sample of row groups, and decodes some of their images. Runs the
    program ``nepa inspect``, whose messages go to the logger ``"nepa"``.

    >>> found = nepa.inspect("s3://bucket/in1k", split="train")
    >>> found["rows"], found.warnings

    Args:
        urls: Folders, files, globs or URLs, as for :class:`nepa.Loader`.
        image_column: Column with the images, its name or ``struct.field``; found by itself if None.
        label_column: Column with the labels; found by itself if None, and ``""`` reads none.
        split: Only shards of this split, such as ``"train"``.
        strict: What makes it doubtful that the right data is read is an error, and no warning.
        samples: Images to decode.
        seed: Seed of the sample.
        write_index: Path or URL of an index of the shards that is written, by which
            ``Loader(urls, index=...)`` opens very many shards at once.

    Raises:
        DatasetError: The data set cannot be opened. A row group of the sample that cannot be read
            is no error; :attr:`Inspection.failed` has it.
        SettingError: An argument cannot work.
        NepaError: The program ``nepa`` is not there or cannot run.
    """
    arguments = [
        "--samples",
        str(_checks.whole("samples", samples)),
        "--seed",
        str(_checks.whole("seed", seed)),
    ]
    if label_column is not None:
        arguments.append(f"--label-column={_checks.text('label_column', label_column)}")
    arguments += data_flags(
        image_column=image_column, split=split, strict=strict, write_index=write_index
    )
    return Inspection(run("inspect", arguments, _checks.paths("urls", urls), page=False))
