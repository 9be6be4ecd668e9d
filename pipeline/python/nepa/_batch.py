"""A batch: its pixels, labels and what else is known of its samples."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

if TYPE_CHECKING:
    from . import _nepa


class SampleId(NamedTuple):
    """Where a sample lies: the same in every epoch, log line and error."""

    shard: int
    """Index of the shard; :meth:`nepa.Loader.shard_url` gives its URL."""
    row_group: int
    """Index of the row group in the shard."""
    row: int
    """Row within the row group."""


class Crop(NamedTuple):
    """What a view shows, in pixels of the upright image (after EXIF orientation)."""

    x: float
    """Left edge."""
    y: float
    """Top edge."""
    width: float
    """Width."""
    height: float
    """Height."""
    flip: bool
    """Whether the view is mirrored left to right."""


class Batch:
    """One batch of this process, as :class:`nepa.Loader` yields it.

    ``images, labels = batch`` unpacks it. Arrays lie in the loader's memory and are not copied;
    that memory is lent until the batch and all its arrays are gone, and outlives the loader.
    ``B`` below is ``len(batch)``, the number of samples.
    """

    __slots__ = ("_columns", "_convert", "_labels", "_native", "_views")

    def __init__(self, native: _nepa.Batch, convert: Callable[[Any], Any]) -> None:
        self._native = native
        self._convert = convert
        self._views: list[Any] = [None] * native.num_views
        self._labels: Any = None
        self._columns: Any = None

    def _view(self, index: int) -> Any:
        if self._views[index] is None:
            self._views[index] = self._convert(self._native.view(index))
        return self._views[index]

    @property
    def images(self) -> Any:
        """The pixels of the first view, of the loader's ``dtype``, as its framework's array.

        Shape ``[B, 3, S, S]`` (``layout="NCHW"``), ``[B, S, S, 3]`` (``"NHWC"``) or
        ``[B, (S / p)**2, 3 * p * p]`` (``"patches"``). RGB, normalised unless ``"uint8"``.
        """
        return self._view(0)

    @property
    def views(self) -> tuple[Any, ...]:
        """The pixels of all views, each shaped as :attr:`images` with its own side ``S``."""
        return tuple(self._view(index) for index in range(len(self._views)))

    @property
    def labels(self) -> Any:
        """Class indices, int64 ``[B]``, -1 where a row has none. A list of ``B`` strings where the
        labels are names, with None where a row has none. None where no row has one."""
        if self._labels is None:
            labels = self._native.labels()
            is_array = labels is not None and not isinstance(labels, list)
            self._labels = self._convert(labels) if is_array else labels
        return self._labels

    @property
    def ids(self) -> list[SampleId]:
        """The samples whose pixels these are, in order."""
        return [SampleId(*sample) for sample in self._native.ids()]

    @property
    def crops(self) -> list[tuple[Crop, ...]]:
        """What each view of each sample shows: a tuple of the sample's views, sample by sample."""
        return [tuple(Crop(*view) for view in views) for views in self._native.crops()]

    @property
    def replaced(self) -> list[SampleId | None]:
        """For each sample the bad one whose place it took; None where it stands in its own."""
        replaced = self._native.replaced()
        return [None if sample is None else SampleId(*sample) for sample in replaced]

    @property
    def columns(self) -> Any:
        """The loader's further ``columns``, one row a sample, in order; None where none were asked
        for.

        A ``pyarrow.RecordBatch`` where pyarrow is installed, else an object with
        ``__arrow_c_array__``; either way without a copy.
        """
        if self._columns is None:
            columns = self._native.columns()
            self._columns = columns if columns is None else _record_batch()(columns)
        return self._columns

    @property
    def epoch(self) -> int:
        """Epoch it belongs to, from 0."""
        return self._native.epoch

    def __len__(self) -> int:
        return len(self._native)

    def __iter__(self) -> Iterator[Any]:
        """Images, then labels."""
        return iter((self.images, self.labels))

    def __repr__(self) -> str:
        views = len(self._views)
        return f"<nepa.Batch of {len(self)} samples, {views} view(s), epoch {self.epoch}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a nepa.Batch cannot be pickled or copied, as its memory is lent by a loader of this "
            "process: send a copy of its arrays instead"
        )


@functools.cache
def _record_batch() -> Callable[[Any], Any]:
    """What makes a record batch of an object with ``__arrow_c_array__``."""
    if importlib.util.find_spec("pyarrow") is None:
        return lambda columns: columns
    convert: Callable[[Any], Any] = importlib.import_module("pyarrow").record_batch
    return convert
