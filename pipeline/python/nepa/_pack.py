"""Packing images into shards: :func:`pack`."""

from __future__ import annotations

import logging
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, SupportsIndex

from . import _checks
from ._errors import ForkError, SettingError
from ._nepa import Packer

Label = SupportsIndex | str | None
Item = (
    tuple[bytes | bytearray | memoryview, Label]
    | tuple[bytes | bytearray | memoryview, Label, str | None]
)


@dataclass(frozen=True)
class PackedShard:
    """A shard that was written.

    Attributes:
        name: Its name below the URL, such as ``train-00000.parquet``.
        images: Images in it.
        bytes: Its size.
    """

    name: str
    images: int
    bytes: int


@dataclass(frozen=True)
class PackReport:
    """What :func:`pack` wrote.

    Attributes:
        url: Where.
        shards: The shards, in the order of their images.
    """

    url: str
    shards: tuple[PackedShard, ...]

    @property
    def images(self) -> int:
        """Images in all shards."""
        return sum(shard.images for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.bytes for shard in self.shards)


def pack(
    items: Iterable[Item],
    url: str | PathLike[str],
    *,
    split: str = "train",
    classes: Sequence[str] | None = None,
    row_group_mib: float = 8,
    shard_mib: float = 256,
    check: bool = True,
) -> PackReport:
    """Packs images into Parquet shards ``train-00000.parquet``, ... below a URL.

    The encoded images (JPEG, PNG, WebP, ...) are kept byte for byte, in the order in which they
    come; at no time are more than a few row groups in memory. Shuffle them before: the loader mixes
    within a window only. The shards are read by :class:`nepa.Loader`, Hugging Face ``datasets``,
    pyarrow and DuckDB.

    >>> files = sorted(Path("photos").glob("*/*.jpg"))
    >>> random.Random(1).shuffle(files)
    >>> classes = sorted({file.parent.name for file in files})
    >>> items = ((file.read_bytes(), file.parent.name, str(file)) for file in files)
    >>> nepa.pack(items, "s3://bucket/photos", classes=classes)

    A shard appears when it is complete, and nothing is overwritten. After an error or Ctrl-C whole
    shards stay, which a note of the exception names (before Python 3.11: a warning that is logged),
    and nothing of the shard in hand is left.

    Args:
        items: ``(bytes, label)`` or ``(bytes, label, path)`` of each image. A label is an integer;
            with ``classes`` an index into them or one of the names; None for no label. Where no
            image of the first row group has one, the shards have no labels. A path is any name by
            which you will know the image again, or None.
        url: A local folder, or ``s3://``, ``gs://`` or ``az://``.
        split: First part of the shards' names.
        classes: Names of the classes, in the order of their indices, which are written into the
            shards. None: labels are integers without names.
        row_group_mib: Size of a row group in MiB. The loader fetches and mixes whole row groups:
            small ones mix better, but each costs a request.
        shard_mib: Size of a shard in MiB, about.
        check: Whether to read the header of each image, and to refuse what is no image.

    Raises:
        ImageError: Bytes that cannot be read as an image; the message has the item's number, from
            0, and its path.
        SettingError: An item or argument cannot work.
        DatasetError: The shards cannot be written, or shards of this split are there already.
    """
    place = _checks.path("url", url)
    names = None if classes is None else _checks.texts("classes", classes)
    packer = Packer(
        place,
        _checks.text("split", split),
        names,
        _bytes("row_group_mib", row_group_mib),
        _bytes("shard_mib", shard_mib),
        _checks.boolean("check", check),
    )
    try:
        for number, item in enumerate(items):
            packer.add(*_checked(number, item))
        shards = packer.finish()
    except ForkError:
        raise
    except BaseException as error:
        written = packer.abort()
        if written:
            _note(error, place, written)
        raise
    return PackReport(place, tuple(PackedShard(*shard) for shard in shards))


def _bytes(name: str, mib: float) -> int:
    number = _checks.finite(name, mib) * (1 << 20)
    if not 1 <= number < 1 << 63:
        raise SettingError(f"{name} is {mib!r}, but it must be a size in MiB, greater than 0")
    return int(number)


def _checked(number: int, item: Any) -> tuple[bytes, int | str | None, str | None]:
    """An item as the native module takes it."""
    rule = "an item is (bytes, label) or (bytes, label, path)"
    if not isinstance(item, (tuple, list)) or len(item) not in (2, 3):
        raise SettingError(f"item {number} is {_short(item)}: {rule}")
    data, label = item[:2]
    path = item[2] if len(item) == 3 else None
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise SettingError(
            f"item {number} has {_short(data)} for an image: {rule}, with the bytes of an encoded "
            "file (Path.read_bytes gives them)"
        )
    if label is not None and not isinstance(label, str):
        try:
            label = operator.index(label)
        except TypeError:
            label = None
        if label is None or not -(1 << 63) <= label < 1 << 63:
            raise SettingError(
                f"item {number} has the label {_short(item[1])}: a label is an integer, a name of "
                "classes, or None"
            )
    if path is not None and not isinstance(path, str):
        raise SettingError(f"item {number} has the path {_short(path)}: it is a string or None")
    return bytes(data), label, path


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}... ({type(value).__name__})"


def _note(error: BaseException, place: str, written: Sequence[tuple[str, int, int]]) -> None:
    """Says what stays: packing to the same place again is refused because of it."""
    first, last = written[0][0], written[-1][0]
    names = first if first == last else f"{first} to {last}"
    images = sum(images for _, images, _ in written)
    text = (
        f"Shards that were whole stay in {place}: {names}, with the first {images} images. Remove "
        "them before packing to the same place and split again."
    )
    # From Python 3.11 on.
    add_note = getattr(error, "add_note", None)
    if add_note is None:
        logging.getLogger("nepa").warning("%s", text)
    else:
        add_note(text)
