"""One `for` is one epoch: what is where after the end, a break, `set_epoch`, `close`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import loader_of

import nepa


def seen(batches: Any) -> list[tuple[int, list[nepa.SampleId], bytes]]:
    """All that tells batches apart: epoch, samples, pixels."""
    return [(batch.epoch, batch.ids, batch.images.tobytes()) for batch in batches]


def first(loader: nepa.Loader, count: int) -> list[Any]:
    """The first batches of a `for` that breaks then."""
    found = []
    for batch in loader:
        found += seen([batch])
        if len(found) == count:
            break
    return found


def test_each_for_is_the_next_epoch(photos: Path) -> None:
    loader = loader_of(photos)
    assert (len(loader), loader.epoch) == (12, 0)
    epochs = [seen(loader) for _ in range(3)]
    assert [[batch[0] for batch in epoch] for epoch in epochs] == [[0] * 12, [1] * 12, [2] * 12]
    orders = [[sample for batch in epoch for sample in batch[1]] for epoch in epochs]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])
    assert orders[0] != orders[1] != orders[2]
    assert loader.epoch == 3


def test_an_iterator_that_ended_stays_at_its_end(photos: Path) -> None:
    loader = loader_of(photos)
    iterator = iter(loader)
    assert len(list(zip(iterator, range(99), strict=False))) == 12
    assert next(iterator, None) is None
    assert seen(iter(loader))[0][0] == 1
    assert next(iterator, None) is None


def test_a_for_after_a_break_is_the_next_epoch(photos: Path) -> None:
    loader, other = loader_of(photos), loader_of(photos)
    _, second = seen(other), seen(other)
    first(loader, 5)
    assert loader.epoch == 0
    assert seen(loader) == second
    # A break at an epoch's very end has left nothing.
    first(loader, 12)
    assert loader.epoch == 3
    assert first(loader, 1)[0][0] == 3


def test_an_iterator_that_was_not_used_takes_nothing(photos: Path) -> None:
    loader = loader_of(photos)
    iter(loader)
    assert first(loader, 1)[0][0] == 0


def test_all_ends_after_the_given_epochs(photos: Path) -> None:
    loader = loader_of(photos, epochs=2)
    assert [len(seen(loader)) for _ in range(4)] == [12, 12, 0, 0]
    with pytest.raises(nepa.SettingError, match="epoch is 2.*epochs, 2"):
        loader.set_epoch(2)
    loader.set_epoch(1)
    assert [len(seen(loader)) for _ in range(2)] == [12, 0]
    # A break in the last epoch ends it, too.
    loader.set_epoch(1)
    first(loader, 3)
    assert seen(loader) == []


def test_set_epoch_repeats_an_epoch_exactly(photos: Path) -> None:
    loader = loader_of(photos)
    epochs = [seen(loader) for _ in range(3)]
    for epoch in (1, 0, 2):
        loader.set_epoch(epoch)
        assert loader.epoch == epoch
        assert seen(loader) == epochs[epoch]
    first(loader, 4)
    loader.set_epoch(loader.epoch)
    assert loader.state_dict()["batch_in_epoch"] == 0
    for value in (-1, 1.5, "1"):
        with pytest.raises(nepa.SettingError, match="epoch"):
            loader.set_epoch(value)


def test_set_epoch_is_free_in_a_plain_loop(photos: Path) -> None:
    plain, told = loader_of(photos), loader_of(photos)
    expected = [seen(plain) for _ in range(3)]
    found = []
    for epoch in range(3):
        told.set_epoch(epoch)
        found.append(seen(told))
    assert found == expected


def test_only_the_newest_iterator_goes_on(photos: Path) -> None:
    loader = loader_of(photos)
    older = iter(loader)
    next(older)
    newer = iter(loader)
    assert next(newer).epoch == 1
    with pytest.raises(RuntimeError, match="newer one"):
        next(older)
    assert next(newer).epoch == 1
    loader.set_epoch(0)
    with pytest.raises(RuntimeError, match="set_epoch"):
        next(newer)


def test_close_ends_a_for_and_a_later_one_begins_anew(photos: Path) -> None:
    with loader_of(photos) as loader:
        iterator = iter(loader)
        batch = next(iterator)
    pixels = batch.images.copy()
    with pytest.raises(RuntimeError, match="close"):
        next(iterator)
    np.testing.assert_array_equal(batch.images, pixels)
    expected = loader_of(photos)
    expected.set_epoch(1)
    assert seen(loader) == seen(expected)


@pytest.mark.parametrize(("drop_last", "sizes"), [(True, [50] * 3), (False, [50] * 3 + [42])])
def test_the_last_batch_is_dropped_or_smaller(
    photos: Path, drop_last: bool, sizes: list[int]
) -> None:
    loader = loader_of(photos, batch_size=50, drop_last=drop_last)
    assert len(loader) == len(sizes)
    for _ in range(2):
        batches = [(len(batch), batch.images.shape[0], len(batch.labels)) for batch in loader]
        assert batches == [(size, size, size) for size in sizes]


def test_without_shuffling_samples_come_in_order(photos: Path) -> None:
    loader = loader_of(photos, shuffle=False)
    for _ in range(2):
        ids = [sample for batch in loader for sample in batch.ids]
        assert ids == sorted(ids) and len(ids) == 192


def test_seeds_are_other_orders_and_the_same_seed_the_same(photos: Path) -> None:
    assert seen(loader_of(photos, seed=1)) == seen(loader_of(photos, seed=1))
    assert seen(loader_of(photos, seed=1)) != seen(loader_of(photos, seed=2))


def test_a_mixture_gives_each_data_set_its_share(photos: Path, tiny: Path) -> None:
    loader = loader_of(None, mixture={photos: 3, str(tiny): 1})
    assert (loader.num_shards, loader.num_samples) == (4, 192 + 256)
    assert [Path(loader.shard_url(shard)).parent.name for shard in range(4)].count(tiny.name) == 1
    of_tiny = next(i for i in range(4) if Path(loader.shard_url(i)).parent.name == tiny.name)
    for batch in loader:
        assert sum(sample.shard == of_tiny for sample in batch.ids) == 4


@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("ranks", [2, 4])
def test_the_slices_of_all_ranks_are_the_global_batch(photos: Path, lanes: int, ranks: int) -> None:
    shared: dict[str, Any] = {"batch_size": None, "global_batch_size": 16, "lanes": lanes}
    alone = loader_of(photos, **shared)
    parts = [loader_of(photos, **shared, rank=rank, world_size=ranks) for rank in range(ranks)]
    assert {len(part) for part in parts} == {len(alone)}
    for _ in range(2):
        for whole, *slices in zip(alone, *parts, strict=True):
            assert [sample for part in slices for sample in part.ids] == whole.ids
            assert [crop for part in slices for crop in part.crops] == whole.crops
            images = np.concatenate([part.images for part in slices])
            np.testing.assert_array_equal(images, whole.images)
            labels = np.concatenate([part.labels for part in slices])
            np.testing.assert_array_equal(labels, whole.labels)
