"""What goes wrong is an error of the right class that says where, and a line of `logging`."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import loader_of, picture, png, run_python, write_shards

import nepa


def images(count: int, bad: set[int]) -> list[bytes]:
    """Pictures of which some are cut off after their header."""
    return [
        data[:60] if index in bad else data
        for index, data in ((index, png(picture(index, 16, 16))) for index in range(count))
    ]


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing.parquet"
    with pytest.raises(nepa.DatasetError, match="missing.parquet") as refused:
        loader_of(missing)
    assert isinstance(refused.value, nepa.NepaError)
    assert "missing.parquet" in (refused.value.object or "")
    assert (refused.value.row_group, refused.value.row) == (None, None)


def test_what_is_no_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"no Parquet at all" * 100)
    with pytest.raises(nepa.DatasetError, match="train.parquet") as refused:
        loader_of(tmp_path)
    assert (refused.value.object or "").endswith("train.parquet")


def test_a_column_that_holds_no_images_is_named(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(nepa.NepaError, match="no_such"):
        loader_of(photos, image_column="no_such")
    folder = write_shards(tmp_path, images(4, set()), pa.array(range(4)))
    with pytest.raises(nepa.DatasetError, match="split"):
        loader_of(folder, split="validation")


def test_a_data_set_smaller_than_a_batch_is_refused(photos: Path) -> None:
    with pytest.raises(nepa.SettingError, match="192 samples, fewer than one batch"):
        loader_of(photos, batch_size=193)
    assert len(loader_of(photos, batch_size=193, drop_last=False)) == 1


def test_a_few_bad_images_are_replaced_and_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = write_shards(tmp_path / "shards", images(64, {5, 40}), pa.array(range(64)))
    listed = tmp_path / "bad.jsonl"
    loader = loader_of(folder, bad_samples_path=listed)
    with caplog.at_level(logging.WARNING, logger="nepa"):
        replaced = [sample for batch in loader for sample in batch.replaced if sample]
        ids = [sample for batch in loader_of(folder) for sample in batch.ids]
    assert sorted(replaced) == [nepa.SampleId(0, 0, 5), nepa.SampleId(0, 0, 40)]
    assert not {sample.row for sample in ids} & {5, 40}
    lines = [json.loads(line) for line in listed.read_text().splitlines()]
    assert sorted(line["row"] for line in lines) == [5, 40]
    told = [record for record in caplog.records if record.name.split(".")[0] == "nepa"]
    told = [record for record in told if "bad sample" in record.getMessage()]
    # Those of the first loader are in the list alone.
    assert len(told) == 2
    assert all(record.levelno == logging.WARNING for record in told)
    assert all("row 5" in line or "row 40" in line for line in (r.getMessage() for r in told))
    assert capfd.readouterr() == ("", ""), "nothing is printed"


def test_too_many_bad_images_end_it(tmp_path: Path) -> None:
    """Judged after the first 1,000; a tenth are bad here, of which a hundredth is allowed."""
    bad = set(range(7, 1_200, 10))
    folder = write_shards(tmp_path, images(1_200, bad), pa.array(range(1_200)))
    loader = loader_of(folder, batch_size=100)
    with pytest.raises(nepa.ImageError, match="max_bad_fraction") as refused:
        for _ in loader:
            pass
    error = refused.value
    assert (error.object or "").endswith(".parquet")
    assert error.row_group == 0 and error.row in bad
    assert sum(len(batch) for batch in loader_of(folder, batch_size=100, max_bad_fraction=0.2)) == (
        1_200
    )


def test_bad_images_alone_cannot_be_replaced(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, images(32, set(range(32))), pa.array(range(32)))
    loader = loader_of(folder)
    with pytest.raises(nepa.ImageError, match="nothing can replace it") as refused:
        next(iter(loader))
    error = refused.value
    assert (error.object or "").endswith(".parquet")
    assert error.row_group == 0 and error.row in range(32)


def test_without_logging_nothing_is_printed(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, images(32, {3}), pa.array(range(32)))
    code = """
        import os, sys

        os.dup2(1, 2)  # Both outputs are one.
        import nepa

        loader = nepa.Loader(sys.argv[1], batch_size=16, framework="dlpack")
        print(sum(len(batch) for batch in loader))
    """
    assert run_python(code, folder) == "32\n"


def test_a_device_that_is_not_there_is_refused(photos: Path) -> None:
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has a GPU")
    with pytest.raises((nepa.DeviceError, nepa.SettingError), match="cuda"):
        loader_of(photos, device="cuda:0", framework="dlpack")


@pytest.mark.parametrize(
    ("kind", "bases"),
    [
        (nepa.DatasetError, ()),
        (nepa.ImageError, ()),
        (nepa.SettingError, (ValueError,)),
        (nepa.StateError, (ValueError,)),
        (nepa.DeviceError, (RuntimeError,)),
        (nepa.KeptTooManyError, (BufferError,)),
        (nepa.ForkError, (RuntimeError,)),
    ],
)
def test_errors_are_those_of_python_too(
    kind: type[nepa.NepaError], bases: tuple[type[Exception], ...]
) -> None:
    assert issubclass(kind, (nepa.NepaError,)) and issubclass(nepa.NepaError, Exception)
    assert all(issubclass(kind, base) for base in bases)
    error = kind("text")
    assert (str(error), error.object, error.row_group, error.row) == ("text", None, None, None)
