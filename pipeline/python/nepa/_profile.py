"""What limits reading a data set, measured: :func:`profile`."""

from __future__ import annotations

import html
from collections.abc import Sequence
from os import PathLike
from typing import Any

from . import _checks
from ._program import Output, data_flags, run
from ._report import Report

# Paragraphs of the printed report that are the verdict.
_VERDICT = ("limit ", "also ")
_FRAME = (
    '<iframe title="nepa profile" sandbox="allow-scripts" loading="lazy" srcdoc="{page}" '
    'style="width: 100%; height: 45em; border: 1px solid #8888; border-radius: 4px"></iframe>'
)


class Profile(Report):
    """What limits reading a data set. A mapping; its keys, such as ``"images_per_second"``,
    ``"verdict"`` and ``"ladder"``, are explained in ``docs/profile.md``. Its ``repr`` is the rate
    and the verdict, its ``str`` all that ``nepa profile`` prints; a notebook shows :attr:`html`.
    """

    def __init__(self, output: Output) -> None:
        super().__init__(output)
        self._page = output.page

    @property
    def html(self) -> str:
        """The report as an HTML page, which needs no other file. It holds three images of the data
        set."""
        return self._page

    @property
    def verdict(self) -> dict[str, Any]:
        """What limits (``"limit"``), why and what to do (``"causes"``), and what changes would give
        (``"what_if"``)."""
        verdict: dict[str, Any] = self["verdict"]
        return verdict

    def __repr__(self) -> str:
        rate, *paragraphs = str(self).split("\n\n")
        verdict = [text for text in paragraphs if text.startswith(_VERDICT)]
        return "\n".join([rate, *verdict])

    def _repr_html_(self) -> str:
        # In a frame: the page's style is for all of a page.
        return _FRAME.format(page=html.escape(self._page))


def profile(
    urls: str | PathLike[str] | Sequence[str | PathLike[str]],
    *,
    seconds: float = 30,
    batch_size: int = 64,
    image_size: int = 224,
    decode_threads: int | None = None,
    max_requests: int | None = None,
    shuffle_window_bytes: int | None = None,
    image_column: str | None = None,
    split: str | None = None,
    strict: bool = False,
    index: str | PathLike[str] | None = None,
    consumer: float | None = None,
) -> Profile:
    """Measures what limits reading a data set on this machine, and what to change.

    Runs the program ``nepa profile``: a loader of its own, with no model, reads in short trials as
    it is, without the store, without decoding and with settings changed, turn by turn. It measures
    what other programs leave it, so let no training run beside it. Ctrl-C ends it.

    >>> profile = nepa.profile("s3://bucket/in1k", seconds=30)
    >>> profile["images_per_second"]["median"], profile.verdict["limit"]

    Args:
        urls: Folders, files, globs or URLs, as for :class:`nepa.Loader`.
        seconds: Time to measure, over all trials.
        batch_size: Images in a batch.
        image_size: Side of the square images, in pixels, of a random crop.
        decode_threads: Decode threads; None: one a core.
        max_requests: Most requests in flight; None: 32.
        shuffle_window_bytes: Size of the shuffle window; None: 1 GiB.
        image_column: Column with the images; found by itself if None.
        split: Only shards of this split, such as ``"train"``.
        strict: What makes it doubtful that the right data is read is an error.
        index: Path or URL of an index of the shards, as for :class:`nepa.Loader`.
        consumer: Images that the training takes a second: says whether it would be fed.

    Raises:
        DatasetError: The data set cannot be read.
        SettingError: An argument cannot work.
        NepaError: The program ``nepa`` is not there or cannot run.
    """
    arguments = [f"--seconds={_checks.positive('seconds', seconds)}"]
    for flag, name, number in (
        ("batch", "batch_size", batch_size),
        ("image-size", "image_size", image_size),
        ("decode-threads", "decode_threads", decode_threads),
        ("max-requests", "max_requests", max_requests),
    ):
        if number is not None:
            arguments.append(f"--{flag}={_checks.whole(name, number, least=1)}")
    if shuffle_window_bytes is not None:
        window = _checks.whole("shuffle_window_bytes", shuffle_window_bytes, least=1)
        arguments.append(f"--shuffle-window-mib={-(-window >> 20)}")
    arguments += data_flags(image_column=image_column, split=split, strict=strict, index=index)
    if consumer is not None:
        arguments.append(f"--consumer={_checks.positive('consumer', consumer)}")
    return Profile(run("profile", arguments, _checks.paths("urls", urls), page=True))
