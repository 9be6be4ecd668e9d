"""A position that was saved gives the very batches that would have come next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import loader_of
from test_epochs import first, seen

import nepa

GLOBAL: dict[str, Any] = {"batch_size": None, "global_batch_size": 16}


def test_a_state_is_small_plain_data(photos: Path) -> None:
    loader = loader_of(photos)
    first(loader, 5)
    state = loader.state_dict()
    assert json.loads(json.dumps(state)) == state
    assert len(json.dumps(state)) < 4096
    assert (state["epoch"], state["batch_in_epoch"]) == (0, 5)


@pytest.mark.parametrize("before", [0, 1, 5, 11, 12, 17, 24])
def test_a_state_goes_on_where_it_was_saved(photos: Path, before: int) -> None:
    """Also one of an epoch's end, after which a `for` is the next epoch as a whole."""
    loader = loader_of(photos)
    for _ in range(before // 12):
        seen(loader)
    if before % 12:
        first(loader, before % 12)
    state = loader.state_dict()
    fresh = loader_of(photos)
    rest = [batch for _ in range(3) for batch in seen(fresh)][before:36]

    resumed = loader_of(photos)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert resumed.epoch == before // 12
    found = [seen(resumed) for _ in range(3 - before // 12)]
    assert len(found[0]) == 12 - before % 12
    assert [batch for epoch in found for batch in epoch] == rest


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("saved_by", [1, 2])
def test_another_number_of_ranks_goes_on_exactly(photos: Path, saved_by: int, ranks: int) -> None:
    """Ids, crops and pixels; from the middle of the second epoch on."""
    savers = [
        loader_of(photos, **GLOBAL, rank=rank, world_size=saved_by) for rank in range(saved_by)
    ]
    for saver in savers:
        seen(saver)
        first(saver, 7)
    states = [saver.state_dict() for saver in savers]
    assert all(state == states[0] for state in states), "a state is the same in all processes"

    alone = loader_of(photos, **GLOBAL)
    alone.load_state_dict(states[0])
    parts = [loader_of(photos, **GLOBAL, rank=rank, world_size=ranks) for rank in range(ranks)]
    for part in parts:
        part.load_state_dict(states[0])
    plain = loader_of(photos, **GLOBAL)
    seen(plain)
    expected = seen(plain)[7:] + seen(plain)
    found = []
    for _ in range(2):
        for whole, *slices in zip(alone, *parts, strict=True):
            found += seen([whole])
            assert [sample for part in slices for sample in part.ids] == whole.ids
            assert [crop for part in slices for crop in part.crops] == whole.crops
            images = np.concatenate([part.images for part in slices])
            np.testing.assert_array_equal(images, whole.images)
    assert found == expected


def test_set_epoch_keeps_a_position_that_was_loaded(photos: Path) -> None:
    """The loop of a script that resumes: `for epoch in range(loader.epoch, ...)`."""
    loader = loader_of(photos)
    seen(loader)
    first(loader, 3)
    resumed = loader_of(photos)
    resumed.load_state_dict(loader.state_dict())
    resumed.set_epoch(1)
    assert len(seen(resumed)) == 9
    # Of another epoch, it is the whole one; and so is this one later.
    resumed.load_state_dict(loader.state_dict())
    resumed.set_epoch(0)
    assert len(seen(resumed)) == 12
    resumed.set_epoch(1)
    assert len(seen(resumed)) == 12


def test_a_state_may_be_loaded_in_the_middle_of_a_for(photos: Path) -> None:
    loader = loader_of(photos)
    expected = seen(loader)
    loader.set_epoch(0)
    iterator = iter(loader)
    seen([next(iterator)])
    state = loader.state_dict()
    seen([next(iterator)])
    loader.load_state_dict(state)
    with pytest.raises(RuntimeError, match="load_state_dict"):
        next(iterator)
    assert seen(loader) == expected[1:]


@pytest.mark.parametrize("settings", [{"seed": 2}, {"batch_size": 8}, {"shuffle": False}])
def test_the_state_of_another_order_is_refused(photos: Path, settings: dict[str, Any]) -> None:
    state = loader_of(photos).state_dict()
    other = loader_of(photos, **settings)
    iterator = iter(other)
    next(iterator)
    with pytest.raises(nepa.StateError, match="cannot resume"):
        other.load_state_dict(state)
    assert next(iterator).epoch == 0, "nothing has changed"


def test_the_state_of_another_data_set_is_refused(photos: Path, tiny: Path) -> None:
    with pytest.raises(nepa.StateError, match="data set"):
        loader_of(tiny).load_state_dict(loader_of(photos).state_dict())


@pytest.mark.parametrize("state", [None, "state", {}, {"version": 4}, {"version": {1, 2}}])
def test_what_is_no_state_is_refused(photos: Path, state: Any) -> None:
    with pytest.raises(nepa.StateError):
        loader_of(photos).load_state_dict(state)
