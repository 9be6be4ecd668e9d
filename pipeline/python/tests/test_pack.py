"""`nepa.pack`: what is given is kept, what cannot be packed is refused, no half shard is left."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import loader_of, picture, png, run_python

import nepa

# About two pictures of 5 KiB in a row group and eight in a shard.
SMALL: dict[str, Any] = {"row_group_mib": 0.01, "shard_mib": 0.04}


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def rows(folder: Path) -> list[dict[str, Any]]:
    tables = (pq.read_table(folder / name) for name in names(folder))
    return [row for table in tables for row in table.to_pylist()]


def test_images_come_back_in_their_order(tmp_path: Path) -> None:
    classes = ["ant", "bee", "cat"]
    images = [png(picture(index)) for index in range(40)]
    labels = [index % 3 for index in range(40)]
    items = (
        (
            bytearray(data) if index % 2 else memoryview(data),
            label if index % 4 else classes[label],
            f"{index}.png",
        )
        for index, (data, label) in enumerate(zip(images, labels, strict=True))
    )
    report = nepa.pack(items, tmp_path / "packed", classes=classes, **SMALL)
    folder = Path(report.url)
    assert [shard.name for shard in report.shards] == names(folder)
    assert names(folder)[:2] == ["train-00000.parquet", "train-00001.parquet"]
    assert report.images == 40 and len(report.shards) > 2
    assert report.bytes == sum(file.stat().st_size for file in folder.iterdir())
    expected = [
        {"image": {"bytes": data, "path": f"{index}.png"}, "label": label}
        for index, (data, label) in enumerate(zip(images, labels, strict=True))
    ]
    assert rows(folder) == expected

    found = nepa.inspect(folder)
    assert found["labels"]["classes"] == classes
    assert found["sample"]["rows_without_label"] == 0
    assert not any("missing" in warning for warning in found.warnings)
    loader = loader_of(folder, batch_size=8, shuffle=False, transform=nepa.Squash(32))
    seen = [label for batch in loader for label in batch.labels.tolist()]
    assert sorted(seen) == sorted(labels)


def test_numbers_need_no_names(tmp_path: Path) -> None:
    images = [png(picture(index)) for index in range(6)]
    labels = [np.int64(7), None, 1 << 40, True, np.uint8(9), 0]
    report = nepa.pack(zip(images, labels, strict=True), tmp_path, split="val")
    assert [shard.name for shard in report.shards] == ["val-00000.parquet"]
    assert [row["label"] for row in rows(tmp_path)] == [7, None, 1 << 40, 1, 9, 0]
    assert [row["image"]["path"] for row in rows(tmp_path)] == [None] * 6
    found = nepa.inspect(tmp_path)
    assert found["labels"] == {"column": "column `label`, int64", "classes": None}
    assert found["sample"]["rows_without_label"] == 1
    # Without any label there is no column of them.
    nepa.pack([(images[0], None)], tmp_path / "bare")
    assert list(rows(tmp_path / "bare")[0]) == ["image"]


def test_real_jpegs_are_kept(tmp_path: Path) -> None:
    data = os.environ.get("NEPA_TEST_DATA")
    files = sorted(Path(data).rglob("*.jp*g"))[:100] if data else []
    if not files:
        pytest.skip("NEPA_TEST_DATA names no folder of JPEG files")
    report = nepa.pack(((file.read_bytes(), 0, file.name) for file in files), tmp_path)
    assert report.images == len(files)
    kept = [row["image"]["bytes"] for row in rows(tmp_path)]
    assert kept == [file.read_bytes() for file in files]


def test_no_items_are_no_shards(tmp_path: Path) -> None:
    assert nepa.pack([], tmp_path / "packed").shards == ()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    item = (png(picture(0)), 0)
    nepa.pack([item], tmp_path)
    before = (tmp_path / "train-00000.parquet").read_bytes()
    with pytest.raises(nepa.DatasetError, match=r"already holds 1 shards.*train-00000") as raised:
        nepa.pack([item], tmp_path)
    assert raised.value.object is not None and raised.value.object.endswith(tmp_path.name)
    assert (tmp_path / "train-00000.parquet").read_bytes() == before


@pytest.mark.parametrize(
    ("item", "error", "text"),
    [
        ((b"no image", 0, "a.jpg"), nepa.ImageError, r"item 1 \(a.jpg\) cannot be read"),
        ((png(picture(1))[:20], 0), nepa.ImageError, "item 1 cannot be read"),
        ((b"", 0), nepa.ImageError, "item 1 .*empty"),
        ((png(picture(1)), 2), nepa.SettingError, "label 2 of item 1 is not one of 0 to 1"),
        ((png(picture(1)), -1), nepa.SettingError, "label -1 of item 1"),
        ((png(picture(1)), "cow"), nepa.SettingError, 'label "cow" of item 1 is none of'),
        ((png(picture(1)), 0.5), nepa.SettingError, "item 1 has the label 0.5"),
        ((png(picture(1)), 1 << 70), nepa.SettingError, "item 1 has the label 118"),
        ((png(picture(1)), 0, 3), nepa.SettingError, "item 1 has the path 3"),
        (("x.png", 0), nepa.SettingError, "item 1 has 'x.png' for an image"),
        (png(picture(1)), nepa.SettingError, r"item 1 is .* \(bytes\): an item is"),
    ],
)
def test_an_item_that_cannot_be_packed_is_named(
    tmp_path: Path, item: Any, error: type[nepa.NepaError], text: str
) -> None:
    good = (png(picture(0)), 0)
    with pytest.raises(error, match=text):
        nepa.pack([good, item], tmp_path, classes=["ant", "bee"])
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"classes": []}, "classes is empty"),
        ({"classes": "ab"}, "classes is 'ab'"),
        ({"classes": ["a", "a"]}, "classes is"),
        ({"split": "a/b"}, "split .* must be a name"),
        ({"split": "_a"}, "split .* must be a name"),
        ({"row_group_mib": 0}, "row_group_mib is 0"),
        ({"shard_mib": float("inf")}, "shard_mib is inf"),
        ({"check": 1}, "check is 1"),
    ],
)
def test_a_setting_that_cannot_work_is_named(
    tmp_path: Path, settings: dict[str, Any], text: str
) -> None:
    with pytest.raises(nepa.SettingError, match=text):
        nepa.pack([(png(picture(0)), 0)], tmp_path, **settings)
    assert names(tmp_path) == []


def test_unchecked_bytes_are_kept(tmp_path: Path) -> None:
    nepa.pack([(b"no image", None)], tmp_path, check=False)
    assert rows(tmp_path) == [{"image": {"bytes": b"no image", "path": None}}]


def test_an_error_leaves_whole_shards_and_says_which(tmp_path: Path) -> None:
    def items() -> Iterator[tuple[bytes, int]]:
        for index in range(30):
            yield png(picture(index)), index
        raise OSError("the camera is off")

    with pytest.raises(OSError, match="the camera is off") as raised:
        nepa.pack(items(), tmp_path, **SMALL)
    there = names(tmp_path)
    assert len(there) > 1 and all(name.endswith(".parquet") for name in there)
    kept = rows(tmp_path)
    assert [row["label"] for row in kept] == list(range(len(kept)))
    if sys.version_info >= (3, 11):
        (note,) = raised.value.__notes__
        assert f"{there[0]} to {there[-1]}, with the first {len(kept)} images" in note


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is a signal of POSIX")
def test_ctrl_c_leaves_whole_shards(tmp_path: Path) -> None:
    said = run_python(
        """
        import itertools, os, pathlib, signal, sys
        import nepa

        sys.path.insert(0, sys.argv[2])
        from conftest import picture, png

        image = png(picture(0))
        def items():
            for number in itertools.count():
                if number == 100:
                    os.kill(os.getpid(), signal.SIGINT)
                yield image, number

        try:
            nepa.pack(items(), sys.argv[1], row_group_mib=0.01, shard_mib=0.04)
        except KeyboardInterrupt:
            print("interrupted")
        """,
        tmp_path,
        Path(__file__).parent,
    )
    assert said == "interrupted\n"
    there = names(tmp_path)
    assert len(there) > 1 and all(name.endswith(".parquet") for name in there)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_is_refused_and_the_parent_goes_on(tmp_path: Path) -> None:
    said = run_python(
        """
        import os, sys
        import nepa

        sys.path.insert(0, sys.argv[2])
        from conftest import picture, png

        def items():
            for number in range(3):
                if number == 1 and os.fork() == 0:
                    # The child goes on with the same generator, in the same call of pack.
                    pass
                yield png(picture(number)), number

        parent = os.getpid()
        try:
            nepa.pack(items(), sys.argv[1])
        except nepa.ForkError:
            assert os.getpid() != parent
            print("refused", flush=True)
            sys.exit(0)
        assert os.getpid() == parent
        assert os.wait()[1] == 0
        """,
        tmp_path,
        Path(__file__).parent,
    )
    assert said == "refused\n"
    assert [row["label"] for row in rows(tmp_path)] == [0, 1, 2]
