"""What the tests share: pictures drawn in code, shards of them, child processes, skips out loud."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import nepa

# Whoever starts the tests in the background may have Ctrl-C ignored, by their children, too.
signal.signal(signal.SIGINT, signal.default_int_handler)

NUM_CLASSES = 10
WIDTH, HEIGHT = 48, 40


def picture(index: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """RGB ``[height, width, 3]`` of 8 bits, another one for each index."""
    noise = np.random.default_rng(index).integers(0, 64, (height, width, 3))
    slope = np.linspace(0, 128, width)[None, :, None] + np.linspace(0, 60, height)[:, None, None]
    return (noise + slope).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """The picture as a PNG file."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    image = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + image


def write_shards(
    folder: Path,
    images: list[bytes],
    labels: pa.Array | None = None,
    *,
    shards: int = 1,
    rows_in_group: int = 1 << 20,
    **columns: pa.Array,
) -> Path:
    """Parquet shards of equal length; further columns by keyword."""
    folder.mkdir(parents=True, exist_ok=True)
    image = pa.array([{"bytes": data, "path": None} for data in images], _IMAGE)
    table = pa.table({"image": image, **({} if labels is None else {"label": labels}), **columns})
    length = len(images) // shards
    for shard in range(shards):
        name = folder / f"train-{shard:05}-of-{shards:05}.parquet"
        pq.write_table(table.slice(shard * length, length), name, row_group_size=rows_in_group)
    return folder


_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def index_of(sample: nepa.SampleId) -> int:
    """Which picture of `photos` a sample is."""
    return sample.shard * 64 + sample.row_group * 16 + sample.row


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """192 pictures of 48 x 40 pixels in three shards of four row groups; label i % 10, a caption
    and a vector for each."""
    count = 192
    vectors = pa.array(np.arange(count * 4, dtype=np.float32))
    return write_shards(
        tmp_path_factory.mktemp("photos"),
        [png(picture(index)) for index in range(count)],
        pa.array([index % NUM_CLASSES for index in range(count)], pa.int64()),
        shards=3,
        rows_in_group=16,
        caption=pa.array([f"picture {index}" for index in range(count)]),
        vector=pa.FixedSizeListArray.from_arrays(vectors, 4),
    )


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """256 pictures of 32 x 32 pixels, for tests of many batches."""
    images = [png(picture(index, 32, 32)) for index in range(256)]
    labels = pa.array(range(256), pa.int64())
    return write_shards(tmp_path_factory.mktemp("tiny"), images, labels, rows_in_group=64)


def loader_of(urls: Any, **settings: Any) -> nepa.Loader:
    """A loader with settings that are small and quick; NumPy arrays."""
    given: dict[str, Any] = {
        "batch_size": 16,
        "transform": nepa.RandomResizedCrop(32),
        "decode_threads": 2,
        "shuffle_window_bytes": 1 << 16,
        "framework": "numpy",
        "rank": 0,
        "world_size": 1,
    }
    return nepa.Loader(urls, **{**given, **settings})


def run_python(code: str, *arguments: Any, timeout: float = 120, **environ: str) -> str:
    """What a new interpreter prints that runs the code; fails if it fails or takes too long.

    Then it is ended, and with it the processes that it has forked.
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        said, complaints = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        said, complaints = child.communicate()
        pytest.fail(f"it has not ended after {timeout} s\n{said}\n{complaints}")
    assert child.returncode == 0, f"status {child.returncode}\n{said}\n{complaints}"
    return said


@pytest.fixture(autouse=True)
def no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' own launcher says nothing of ranks."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_COMM_")) or name in _TORCHRUN:
            monkeypatch.delenv(name)


_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says each skip, and why."""
    for report in terminalreporter.stats.get("skipped", []):
        *_, reason = report.longrepr if isinstance(report.longrepr, tuple) else ("", "")
        terminalreporter.write_line(f"SKIPPED: {report.nodeid}: {reason}")
