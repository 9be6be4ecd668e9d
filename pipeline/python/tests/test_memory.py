"""Whose memory it is, and that none of it is lost: batches kept and dropped, loaders stopped."""

from __future__ import annotations

import gc
import os
import random
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import loader_of

import nepa

MIB = 1 << 20


def resident() -> int:
    """Bytes of this process that are in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def test_arrays_are_the_loaders_memory(photos: Path) -> None:
    transform = nepa.MultiCrop(global_size=32, local_size=16, local_views=1)
    for batch in loader_of(photos, transform=transform):
        for index, view in enumerate(batch.views):
            array = batch._native.view(index)
            assert view.ctypes.data == array.data_ptr
            assert (view.nbytes, view.shape) == (array.nbytes, array.shape)


def test_a_batch_outlives_its_loader(photos: Path) -> None:
    expected = [batch.images.copy() for batch in loader_of(photos)]
    loader = loader_of(photos)
    kept = list(loader)
    loader.close()
    del loader
    gc.collect()
    images = [batch.images for batch in kept]
    del kept
    gc.collect()
    np.testing.assert_array_equal(images, expected)


def test_one_array_keeps_its_batch(photos: Path) -> None:
    """While it lives, its memory is not lent anew."""
    iterator = iter(loader_of(photos))
    images = next(iterator).images
    copy = images.copy()
    others = {next(iterator).images.ctypes.data for _ in range(10)}
    assert images.ctypes.data not in others
    np.testing.assert_array_equal(images, copy)


def test_more_batches_than_allowed_are_an_error_and_not_a_hang(photos: Path) -> None:
    loader = loader_of(photos, max_kept_batches=3)
    with pytest.raises(nepa.KeptTooManyError, match="max_kept_batches") as refused:
        list(loader)
    assert isinstance(refused.value, BufferError)
    del refused
    # What was handed out is gone with the error, and the epoch goes on.
    gc.collect()
    loader.set_epoch(0)
    kept: list[Any] = []
    iterator = iter(loader)
    kept += [next(iterator) for _ in range(3)]
    with pytest.raises(nepa.KeptTooManyError):
        next(iterator)
    kept.pop(0)
    assert next(iterator).epoch == 0


def test_memory_is_flat_over_ten_thousand_batches(tiny: Path, traced: None) -> None:
    """Kept up to twelve at once and dropped in random order.

    A batch has 48 KiB: if one in a hundred were lost, the 8,000 measured would be 4 MiB of the
    resident set by then, and all of them 375 MiB. The bound of 3 MiB is below both, and well above
    what allocators keep. Of Python's own objects a batch has about 1 kB: lost ones would be 8 MB.
    """
    loader = loader_of(tiny, batch_size=4, seed=5)
    choices = random.Random(5)
    kept: list[Any] = []
    handed_out = 0
    at_start: tuple[int, int] | None = None
    while handed_out < 10_000:
        for batch in loader:
            handed_out += 1
            images, labels = batch
            kept.append(choices.choice([batch, images, (images, labels)]))
            if len(kept) == 12 or choices.random() < 0.5:
                kept.pop(choices.randrange(len(kept)))
            if handed_out == 2_000:
                at_start = resident(), tracemalloc.get_traced_memory()[0]
    assert at_start is not None
    grown = resident() - at_start[0], tracemalloc.get_traced_memory()[0] - at_start[1]
    assert grown[0] < 3 * MIB, f"the resident set has grown by {grown[0] / MIB:.1f} MiB"
    assert grown[1] < 200_000, f"Python's objects have grown by {grown[1]} bytes"


@pytest.mark.parametrize("how", ["close", "drop"])
def test_a_thousand_stops_leave_no_thread_and_no_memory(tiny: Path, traced: None, how: str) -> None:
    """In mid-epoch, each of a loader of its own.

    Its four batches and its threads' stacks have more than 1 MiB, so that lost loaders would be
    hundreds of MiB after 800 stops; the bound is a fortieth of a loader each.
    """
    at_start = (0, 0, 0)
    for count in range(1_000):
        loader = loader_of(tiny, batch_size=32, decode_threads=2)
        iterator = iter(loader)
        for _ in range(count % 4):
            next(iterator)
        if how == "close":
            loader.close()
        del iterator, loader
        if count == 199:
            at_start = threads(), resident(), tracemalloc.get_traced_memory()[0]
    _wait_for_threads(at_start[0])
    assert threads() <= at_start[0]
    grown = resident() - at_start[1], tracemalloc.get_traced_memory()[0] - at_start[2]
    assert grown[0] < 20 * MIB, f"the resident set has grown by {grown[0] / MIB:.1f} MiB"
    assert grown[1] < 200_000, f"Python's objects have grown by {grown[1]} bytes"


def test_a_loader_that_is_closed_has_no_thread(photos: Path) -> None:
    loader = loader_of(photos)
    idle = threads()
    for _ in range(3):
        next(iter(loader))
        assert threads() > idle
        loader.close()
        # What reads may stay, for the next time; what decodes is gone.
        names = [
            Path(f"/proc/self/task/{task}/comm").read_text().strip()
            for task in os.listdir("/proc/self/task")
        ]
        assert not [name for name in names if name.startswith(("nepa-decode", "nepa-dispatch"))]


def _wait_for_threads(expected: int) -> None:
    """The kernel lists a joined thread for a moment longer."""
    for _ in range(100):
        if threads() <= expected:
            return
        time.sleep(0.02)
