"""Other processes: a fork is refused and ends, a spawn opens its own, pickling says why not."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from pathlib import Path

import pytest
from conftest import loader_of, run_python

import nepa


def test_use_after_a_fork_is_refused_and_both_processes_go_on(photos: Path) -> None:
    """The child must end by itself, with its threads gone, and the parent not notice."""
    said = run_python(
        """
        import os, sys, warnings, nepa
        warnings.simplefilter("ignore", DeprecationWarning)  # of os.fork beside threads
        loader = nepa.Loader(sys.argv[1], batch_size=16, framework="numpy")
        iterator = iter(loader)
        batch = next(iterator)
        child = os.fork()
        if child == 0:
            uses = {
                "next": lambda: next(iterator),
                "iter": lambda: next(iter(loader)),
                "set_epoch": lambda: loader.set_epoch(3),
                "state_dict": lambda: loader.state_dict(),
                "close": lambda: loader.close(),
                "images": lambda: batch.images,
            }
            for name, use in uses.items():
                try:
                    use()
                except nepa.ForkError as error:
                    print(name, error, flush=True)
            del iterator, batch, loader, uses
            sys.exit(7)
        _, status = os.waitpid(child, 0)
        print("child", os.waitstatus_to_exitcode(status))
        print("parent", len([*zip(iterator, range(11), strict=True)]), batch.images.shape)
        """,
        photos,
        timeout=60,
    )
    lines = said.splitlines()
    refused = dict(line.split(" ", 1) for line in lines[:-2])
    assert list(refused) == ["next", "iter", "set_epoch", "state_dict", "close", "images"]
    assert all("fork" in sentence and "spawn" in sentence for sentence in refused.values())
    assert lines[-2:] == ["child 7", "parent 11 (16, 3, 224, 224)"]


def test_a_forked_child_that_does_not_use_it_ends(photos: Path) -> None:
    said = run_python(
        """
        import os, sys, warnings, nepa
        warnings.simplefilter("ignore", DeprecationWarning)
        iterator = iter(nepa.Loader(sys.argv[1], batch_size=16, framework="numpy"))
        next(iterator)
        child = os.fork()
        if child == 0:
            sys.exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), next(iterator).epoch)
        """,
        photos,
        timeout=60,
    )
    assert said == "0 0\n"


def test_a_forked_child_may_open_its_own(photos: Path) -> None:
    said = run_python(
        """
        import os, sys, warnings, nepa
        warnings.simplefilter("ignore", DeprecationWarning)
        settings = dict(batch_size=16, framework="numpy", seed=1)
        iterator = iter(nepa.Loader(sys.argv[1], **settings))
        batch = next(iterator)
        child = os.fork()
        if child == 0:
            ids = next(iter(nepa.Loader(sys.argv[1], **settings))).ids
            sys.exit(0 if len(ids) == 16 else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """,
        photos,
        timeout=60,
    )
    assert said == "0\n"


def _ids_of_a_loader_of_its_own(folder: str) -> list[tuple[int, int, int]]:
    return [tuple(sample) for batch in loader_of(folder, seed=4) for sample in batch.ids]


def test_a_spawned_process_opens_its_own(photos: Path) -> None:
    expected = _ids_of_a_loader_of_its_own(str(photos))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply_async(_ids_of_a_loader_of_its_own, (str(photos),)).get(timeout=120)
    assert found == expected


def test_pickling_and_copying_are_refused_with_a_sentence(photos: Path) -> None:
    loader = loader_of(photos)
    batch = next(iter(loader))
    for thing, advice in ((loader, "open one"), (batch, "copy of its arrays")):
        for refused in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match=f"cannot be pickled or copied.*{advice}"):
                refused(thing)


def test_what_describes_a_sample_and_errors_can_be_pickled(photos: Path) -> None:
    batch = next(iter(loader_of(photos)))
    assert pickle.loads(pickle.dumps((batch.ids, batch.crops))) == (batch.ids, batch.crops)
    error = nepa.ImageError("bad", "s3://a/b.parquet", 1, 2)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (nepa.ImageError, "bad")
    assert (again.object, again.row_group, again.row) == ("s3://a/b.parquet", 1, 2)
    transform = nepa.MultiCrop(erase=nepa.RandomErasing())
    assert pickle.loads(pickle.dumps(transform)) == transform
